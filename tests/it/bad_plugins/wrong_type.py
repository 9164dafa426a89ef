class Handler:
    def execute(self, path):
        yield 'text'
