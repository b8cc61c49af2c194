"""What `import tapline` offers: captures, models and live flows from Python, on the path that serves."""
