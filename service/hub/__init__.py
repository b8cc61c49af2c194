"""Checkpoints from elsewhere and to elsewhere: a Hugging Face Hub, or a folder laid out as a repository there. The one
room that fetches, and only when it is asked to."""
