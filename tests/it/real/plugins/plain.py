"""Whatever pandas makes of a CSV file."""

import pandas as pd


class Handler:
    def execute(self, path):
        return pd.read_csv(path)
