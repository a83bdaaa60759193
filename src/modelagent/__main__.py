"""`python -m modelagent` is the same program as `modelagent`."""

from modelagent.cli import main

if __name__ == "__main__":
    main()
