"""What every part of a running process uses: supervision, log lines, signals, the title."""
