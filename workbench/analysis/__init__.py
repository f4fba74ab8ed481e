"""What every analysis has in common: its record, what it is asked, and how long it takes."""
