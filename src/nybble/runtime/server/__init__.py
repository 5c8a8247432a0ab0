"""An OpenAI-compatible server over one runtime, one answer at a time."""
