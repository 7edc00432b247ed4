"""The one exception that carries a sentence for the user instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: a wrong path, a missing device, a misspelt key.

    The message names the thing, what was found, what was expected and the next step. `lerobot-ext` prints it
    as one line and exits with status 2; anything that is not a mistake of the user keeps its traceback.
    """
