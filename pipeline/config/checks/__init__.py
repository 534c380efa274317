"""The checks of an experiment that need more than one of its files, by subject.

Each check is a function of the ``Checker``, to which it reports, and of the parts of the experiment that it looks at.
"""
