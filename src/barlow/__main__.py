"""`python -m barlow`: what `torchrun -m barlow` starts."""

from barlow.cli import main

if __name__ == "__main__":
    main()
