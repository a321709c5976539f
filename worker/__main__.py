"""`python -m worker` is `dispatch-worker`."""

from worker.cli import main

main()
