"""`python -m tok1d`, the `tok1d` command: what torchrun -m and accelerate launch -m start."""

from tok1d.cli.app import main

if __name__ == "__main__":
    main()
