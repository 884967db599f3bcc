"""Models by address: fetched into a cache, checked, and used as a folder; or pushed to where others fetch them."""


def may_pass(status: int) -> bool:
    """Whether a status says that a store cannot answer now, and nothing about what was asked."""
    return status in (408, 425, 429) or status >= 500
