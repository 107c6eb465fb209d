"""One file bench_<operator>.py per operator: its shapes, modes and peers."""
