"""Workbooks: a topic for each sheet. Merged cells repeat their value; columns of mixed values become text."""

import openpyxl
import pandas as pd


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        if path.lower().endswith(".xls"):
            for title, frame in pd.read_excel(path, sheet_name=None, engine="calamine").items():
                self.ctx.publish(self.ctx.register_topic(title), frame)
            return
        book = openpyxl.load_workbook(path, data_only=True)
        for sheet in book.worksheets:
            for area in list(sheet.merged_cells.ranges):
                value = sheet.cell(area.min_row, area.min_col).value
                sheet.unmerge_cells(area.coord)
                for row, column in area.cells:
                    sheet.cell(row, column).value = value
            head, *rows = sheet.iter_rows(values_only=True) if sheet.max_row > 1 else [()]
            columns = {}
            for index, name in enumerate(head):
                values = [row[index] for row in rows]
                kinds = {type(value) for value in values if value is not None}
                if len(kinds) > 1:
                    values = [None if value is None else str(value) for value in values]
                columns[str(name) if name and str(name) not in columns else f"column {index + 1}"] = values
            self.ctx.publish(self.ctx.register_topic(sheet.title), columns)
