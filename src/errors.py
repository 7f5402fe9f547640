"""The one exception that users see as a sentence. Import-light, so that start-up errors come at once."""


class UserError(Exception):
    """Something the user can put right: shown as one sentence, without a traceback."""
