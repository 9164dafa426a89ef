class Handler:
    def execute(self, path):
        raise ValueError('bad row 17')
