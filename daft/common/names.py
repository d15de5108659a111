"""Names that another program must take, checked before anything is sent to it."""


def project(name: str) -> str:
    """A project's name as W&B takes it; raises ValueError for another."""
    if not 0 < len(name) <= 128 or set(name) & set("/\\#?%:") or not name.isprintable():
        raise ValueError("a project of W&B has 1 to 128 characters, none of / \\ # ? % :")
    return name


def entity(name: str) -> str:
    """The name of an account or a team as W&B takes it; raises ValueError for another."""
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ValueError("a team or an account of W&B has letters, digits, - and _")
    return name
