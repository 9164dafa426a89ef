import casparian_no_such_module


class Handler:
    pass
