"""Many units of work: what to compare, how long it will take, and where it runs."""
