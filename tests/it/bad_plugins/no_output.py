class Handler:
    def execute(self, path):
        return None
