"""The programs of this package that jobs run, one argument each."""
