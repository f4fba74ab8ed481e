"""Results as people read them: one page that can be sent on, and what a notebook shows."""
