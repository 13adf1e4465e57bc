"""`python -m cu_fleet` is `cu-fleet`."""

from cu_fleet.cli import main

if __name__ == "__main__":
    main()
