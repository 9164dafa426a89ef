//! What a plugin may return, yield and publish, with the values that readers find, in both ways to
//! start a plugin.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::*;
use crate::run::run_json;

/// What becomes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// Rows as JSON, of all of its output.
    Rows(&'static str),
    /// No output.
    Nothing,
    /// It fails, with these words.
    Fails(&'static str),
}
use Want::{Fails, Nothing, Rows};

/// Name and body of a method of the plugin, and what becomes of the file of that name.
pub(crate) type Case = (&'static str, &'static str, Want);

/// pyarrow imports pandas where it is installed, so without `preload` each process would.
pub(crate) const HEADER: &str = "\
# /// script
# dependencies = [\"pyarrow\", \"pandas\", \"polars\", \"duckdb\", \"numpy\", \"joblib\"]
# [tool.casparian]
# preload = [\"pandas\"]
# ///
import os, sys, time, threading
from casparian_flow.sdk import BasePlugin
";

/// Libraries by the names that cases have for them. A case imports those that it uses: they take long.
const LIBRARIES: &[(&str, &str)] = &[
    ("duckdb.", "import duckdb"),
    ("np.", "import numpy as np"),
    ("pd.", "import pandas as pd"),
    ("pl.", "import polars as pl"),
    ("pa.", "import pyarrow as pa"),
    ("datetime.", "import datetime"),
];

/// A line for each of the libraries that a text uses.
fn imports(text: &str) -> String {
    let used = LIBRARIES.iter().filter(|(name, _)| text.contains(name));
    used.map(|(_, import)| format!("{import}\n")).collect()
}

const HANDLER: &str = "
class Handler(BasePlugin):
    def execute(self, path):
        return getattr(self, os.path.basename(path))(path)
";

/// Prints the rows of each list of Parquet files, as JSON.
const READ: &str = "\
import json, sys
import pyarrow.parquet as pq
found = []
for files in json.loads(sys.argv[1]):
    rows = []
    for file in files:
        table = pq.ParquetFile(file).read()
        rows += table.drop_columns(['_job_id', '_file_version_id']).to_pylist()
    found.append(rows)
print(json.dumps(json.loads(json.dumps(found, default=str), parse_constant=str)))
";

/// The rows of a file's outputs.
pub(crate) fn rows_of(file: &Value) -> Value {
    rows_of_all(&[file]).remove(0)
}

/// The rows of the outputs of files of a summary.
fn rows_of_all(files: &[&Value]) -> Vec<Value> {
    let paths = |file: &&Value| -> Vec<String> {
        let outputs = file["outputs"].as_array().into_iter().flatten();
        let path = |uri: &Value| {
            uri.as_str()
                .unwrap()
                .strip_prefix("file://")
                .map(str::to_owned)
        };
        outputs.filter_map(path).collect()
    };
    let paths: Vec<Vec<String>> = files.iter().map(paths).collect();
    let paths = serde_json::to_string(&paths).unwrap();
    let output = output(Command::new(python()).args(["-c", READ, &paths]));
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Runs a plugin with a method a case over an input a case.
pub(crate) fn check(more_source: &str, cases: &[Case], more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    let mut source = format!("{HEADER}{more_source}{HANDLER}");
    for (name, body, _) in cases {
        std::fs::write(inputs.join(name), "a,keep\n1,1\n2,0\n3,1\n").unwrap();
        write!(source, "\n    def {name}(self, path):\n").unwrap();
        for line in imports(body).lines().chain(body.lines()) {
            writeln!(source, "        {line}").unwrap();
        }
    }
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, source).unwrap();
    let inputs = [inputs.to_str().unwrap()];
    let out = dir.path().join("out");
    let (summary, _) = run_json(plugin.to_str().unwrap(), &inputs, &out, more);
    let of_case = |(name, _, _): &Case| {
        let mut files = summary["files"].as_array().unwrap().iter();
        let is_its = |file: &&Value| Path::new(file["file"].as_str().unwrap()).ends_with(name);
        files.find(is_its).unwrap()
    };
    let files: Vec<&Value> = cases.iter().map(of_case).collect();
    let found = rows_of_all(&files);
    for (((name, _, want), file), found) in cases.iter().zip(files).zip(found) {
        match want {
            Rows(rows) => {
                assert_eq!(file["status"], "DONE", "{more:?} {name}: {file}");
                let rows: Value = serde_json::from_str(rows).unwrap();
                assert_eq!(found, rows, "{more:?} {name}");
            }
            Nothing => {
                assert_eq!(file["status"], "DONE", "{more:?} {name}: {file}");
                assert_eq!(file["outputs"], serde_json::json!([]), "{more:?} {name}");
            }
            Fails(words) => {
                assert_eq!(file["status"], "FAILED", "{more:?} {name}: {file}");
                let error = file["error"].as_str().unwrap();
                assert!(error.contains(words), "{more:?} {name}: {error}");
            }
        }
    }
}

/// Values become the same however the process was started: every fourth case shows it.
fn check_values(cases: &[Case]) {
    check("", cases, &["--plugin-start", "warm"]);
    let some: Vec<Case> = cases.iter().step_by(4).cloned().collect();
    check("", &some, &["--plugin-start", "spawn"]);
}

pub(crate) fn check_both(more_source: &str, cases: &[Case]) {
    for start in ["warm", "spawn"] {
        check(more_source, cases, &["--plugin-start", start]);
    }
}

const ACCEPTED: &[Case] = &[
    ("none", "return None", Nothing),
    ("no_tables", "return []", Nothing),
    (
        "pandas",
        "return pd.DataFrame({'a': [1, 2]})",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "polars_of_structs",
        "return pl.DataFrame({'from': [{'x': 1, 'y': 2}], 'to': [{'x': 3, 'y': 4}]})",
        Rows(r#"[{"from": {"x": 1, "y": 2}, "to": {"x": 3, "y": 4}}]"#),
    ),
    (
        "polars_csv",
        "return pl.read_csv(path)",
        Rows(r#"[{"a": 1, "keep": 1}, {"a": 2, "keep": 0}, {"a": 3, "keep": 1}]"#),
    ),
    (
        "polars_lazy",
        "return pl.scan_csv(path).filter(pl.col('a') > 1).select('a')",
        Rows(r#"[{"a": 2}, {"a": 3}]"#),
    ),
    (
        "lazy_empty",
        "yield pl.LazyFrame({'a': [1]}).filter(pl.col('a') > 1)",
        Rows("[]"),
    ),
    (
        "categorical",
        "yield pl.DataFrame({'c': ['x', None, 'y']}, schema={'c': pl.Categorical})",
        Rows(r#"[{"c": "x"}, {"c": null}, {"c": "y"}]"#),
    ),
    (
        "categorical_empty",
        "yield pl.DataFrame({'c': ['x']}, schema={'c': pl.Categorical}).clear()",
        Rows("[]"),
    ),
    (
        "dictionary_of_views",
        "yield pa.table({'c': pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), pa.array(['x' * 20, 'y'], pa.string_view()))})",
        Rows(r#"[{"c": "y"}, {"c": null}, {"c": "xxxxxxxxxxxxxxxxxxxx"}]"#),
    ),
    (
        "table",
        "return pa.table({'a': [1]})",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "batch",
        "return pa.record_batch({'a': [1]})",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "reader",
        "yield pa.table({'a': [1, 2]}).to_reader(1)",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "reader_empty",
        "return pa.table({'a': pa.array([], pa.int8())}).to_reader()",
        Rows("[]"),
    ),
    (
        "dataset",
        "import pyarrow.dataset as ds\nreturn ds.dataset(pa.table({'a': [1]}))",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "struct_array",
        "return pa.array([{'a': 1}])",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "structs_of_polars",
        "yield pl.Series([{'a': 1, 'b': None}, None, {'a': 2, 'b': 'x'}])\nyield pl.Series([{'a': 3, 'b': 'y'}])",
        Rows(
            r#"[{"a": 1, "b": null}, {"a": null, "b": null}, {"a": 2, "b": "x"}, {"a": 3, "b": "y"}]"#,
        ),
    ),
    (
        "structs_of_pandas",
        "kind = pd.ArrowDtype(pa.struct([('a', pa.int64())]))\nyield pd.Series([{'a': 1}, None], dtype=kind)\nyield pd.Series([{'a': 2}])",
        Rows(r#"[{"a": 1}, {"a": null}, {"a": 2}]"#),
    ),
    (
        "structs_of_pandas_with_an_index",
        "return pd.Series([{'a': 1}, None], index=pd.Index(['x', 'y'], name='i'))",
        Rows(r#"[{"a": 1, "i": "x"}, {"a": null, "i": "y"}]"#),
    ),
    (
        "structs_in_chunks",
        "field = pa.field('a', pa.int64(), False)\nstructs = pa.StructArray.from_arrays([pa.array([1, 2])], fields=[field], mask=pa.array([False, True]))\nreturn pa.chunked_array([structs.slice(0, 1), structs, structs[1:]])",
        Rows(r#"[{"a": 1}, {"a": 1}, {"a": null}, {"a": null}]"#),
    ),
    (
        "structs_of_a_slice",
        "return pa.array([{'a': 1}, {'a': 2}, None, {'a': 3}])[1:]",
        Rows(r#"[{"a": 2}, {"a": null}, {"a": 3}]"#),
    ),
    (
        "structs_without_rows",
        "return pa.chunked_array([], pa.struct([('a', pa.int64())]))",
        Rows("[]"),
    ),
    (
        "structs_without_fields",
        "return pa.array([{}, None], pa.struct([]))",
        Nothing,
    ),
    (
        "relation",
        "return duckdb.sql(\"select 1 a, 'x' s, {'q': [1, 2]} t\")",
        Rows(r#"[{"a": 1, "s": "x", "t": {"q": [1, 2]}}]"#),
    ),
    (
        "relation_empty",
        "yield duckdb.sql('select 1 a where false')",
        Rows("[]"),
    ),
    (
        "connection",
        "return duckdb.connect().execute('select 5 a')",
        Rows(r#"[{"a": 5}]"#),
    ),
    (
        "columns",
        "return {'a': [1, 2], 'b': np.array([.5, 1]), 'c': pd.Series(['x', None]), 'd': pl.Series([True, False]), 'e': pa.array([1, None]), 'f': range(2)}",
        Rows(
            r#"[{"a": 1, "b": 0.5, "c": "x", "d": true, "e": 1, "f": 0}, {"a": 2, "b": 1.0, "c": null, "d": false, "e": null, "f": 1}]"#,
        ),
    ),
    (
        "columns_yielded",
        "yield {'a': [1]}\nyield {'a': [2]}",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    ("columns_none", "return {}", Nothing),
    (
        "returned_by_what_yields",
        "yield {'a': [1]}\nreturn {'a': [2]}",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "returned_before_a_yield",
        "if path:\n    return [pd.DataFrame({'a': [1]}), [{'a': 2}]]\nyield {'a': [3]}",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "rows_returned_by_what_yields",
        "yield {'a': [1]}\nreturn [{'a': 2}, {'a': 3}]",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 3}]"#),
    ),
    (
        "iterators_returned_by_what_yields",
        "yield {'a': [1]}\nreturn map(lambda n: {'a': [n]}, (2, 3))",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 3}]"#),
    ),
    (
        "counts_of_what_yields",
        "yield {'a': [1]}\nreturn (yield from iter(())) or {'rows': 1, 'status': 'good'}",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "rows",
        "return [{'a': 1}, {'b': 'x'}, None, {'a': None, 'c': [1]}]",
        Rows(
            r#"[{"a": 1, "b": null, "c": null}, {"a": null, "b": "x", "c": null}, {"a": null, "b": null, "c": [1]}]"#,
        ),
    ),
    (
        "rows_yielded",
        "for n in range(2): yield [{'a': n}]",
        Rows(r#"[{"a": 0}, {"a": 1}]"#),
    ),
    ("rows_without_keys", "return [{}]", Nothing),
    (
        "structured",
        "return np.array([(1, 'x', [1, 2], (3,))], dtype=[('a', '>i4'), ('s', 'U3'), ('v', 'i2', (2,)), ('t', [('n', 'u1')])])",
        Rows(r#"[{"a": 1, "s": "x", "v": [1, 2], "t": {"n": 3}}]"#),
    ),
    (
        "swapped",
        "return pd.DataFrame({'a': np.array([1.5], '>f8'), 'b': pd.arrays.SparseArray([2])}, index=pd.Index(np.array([7], '>i4'), name='i'))",
        Rows(r#"[{"a": 1.5, "b": 2, "i": 7}]"#),
    ),
    (
        "swapped_series",
        "return {'a': pd.Series(np.array([1.5], '>f8'))}",
        Rows(r#"[{"a": 1.5}]"#),
    ),
    (
        "record",
        "return np.array([(1,)], dtype=[('a', 'i4')])[0]",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "capsule_stream",
        "class Own:\n    def __arrow_c_stream__(self, schema=None): return pa.table({'a': [1]}).__arrow_c_stream__(schema)\nreturn Own()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "capsule_array",
        "class Own:\n    def __arrow_c_array__(self, schema=None): return pa.record_batch({'a': [1]}).__arrow_c_array__(schema)\nyield Own()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "nested",
        "yield None\nyield [pa.table({'a': [1]}), ({'a': [n]} for n in (2, 3))]\nyield (pd.DataFrame({'a': [4]}), pl.DataFrame({'a': [5]}))",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}, {"a": 5}]"#),
    ),
    (
        "chunks",
        "return pd.read_csv(path, usecols=['a'], chunksize=2)",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 3}]"#),
    ),
    (
        "coroutine",
        "import asyncio\nasync def later():\n    await asyncio.sleep(0)\n    return {'a': [1]}\nreturn later()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "async_generator",
        "import asyncio\nasync def later():\n    for n in range(2):\n        await asyncio.sleep(0)\n        yield {'a': [n]}\nreturn later()",
        Rows(r#"[{"a": 0}, {"a": 1}]"#),
    ),
    (
        "published",
        "self.ctx.publish('t', [{'a': 1}])\nself.ctx.publish('t', pl.LazyFrame({'a': [2]}))\nself.ctx.publish('t', [])",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "metadata",
        "field = pa.field('a', pa.struct([pa.field('b', pa.int64(), metadata={'k': b'\\xfe'})]), metadata={b'\\xff': 'v', 'k': 'v'})\nyield pa.table({'a': [{'b': 1}]}, schema=pa.schema([field], metadata={'k': b'\\xff'}))",
        Rows(r#"[{"a": {"b": 1}}]"#),
    ),
];

#[test]
fn whatever_holds_a_table_may_be_returned_yielded_and_published() {
    check_values(ACCEPTED);
}

const PANDAS: &[Case] = &[
    (
        "filtered",
        "df = pd.read_csv(path)\nyield df[df.keep == 1]",
        Rows(r#"[{"a": 1, "keep": 1}, {"a": 3, "keep": 1}]"#),
    ),
    (
        "named",
        "yield pd.read_csv(path).set_index('a')",
        Rows(r#"[{"keep": 1, "a": 1}, {"keep": 0, "a": 2}, {"keep": 1, "a": 3}]"#),
    ),
    (
        "named_range",
        "yield pd.DataFrame({'a': [5]}).rename_axis('id')",
        Rows(r#"[{"a": 5, "id": 0}]"#),
    ),
    (
        "levels",
        "yield pd.DataFrame({'a': [1]}, index=pd.MultiIndex.from_tuples([(7, 8)], names=['k', 'l']))",
        Rows(r#"[{"a": 1, "k": 7, "l": 8}]"#),
    ),
    (
        "one_level_named",
        "yield pd.DataFrame({'a': [1]}, index=pd.MultiIndex.from_tuples([(7, 8)], names=[None, 'l']))",
        Rows(r#"[{"a": 1, "l": 8}]"#),
    ),
    (
        "kept_as_column",
        "yield pd.DataFrame({'a': [1], 'b': [2]}).set_index('a', drop=False)",
        Rows(r#"[{"a": 1, "b": 2}]"#),
    ),
    (
        "another_column_of_the_name",
        "yield pd.DataFrame({'a': [1]}, index=pd.Index([2], name='a'))",
        Fails("a level of the index is named 'a'"),
    ),
    (
        "sliced",
        "yield pd.DataFrame({'a': [1, 2]})[1:]",
        Rows(r#"[{"a": 2}]"#),
    ),
    (
        "columns_of_levels",
        "yield pd.DataFrame({('a', 'x'): [1]}, index=pd.Index([5], name='a'))",
        Rows(r#"[{"('a', 'x')": 1, "a": 5}]"#),
    ),
    (
        "categories",
        "yield pd.DataFrame({'c': pd.Categorical(['x', None, 'y'])})",
        Rows(r#"[{"c": "x"}, {"c": null}, {"c": "y"}]"#),
    ),
    (
        "categories_empty",
        "yield pd.DataFrame({'c': pd.Categorical([])})",
        Rows("[]"),
    ),
    ("empty", "yield pd.DataFrame([])", Nothing),
    ("no_columns", "yield pd.DataFrame(index=[1, 2])", Nothing),
    (
        "mixed",
        "yield pd.DataFrame({'ok': [1, 2], 'bad': [1, 'x']})",
        Fails("column 'bad': "),
    ),
    (
        "too_big",
        "yield pd.DataFrame({'ok': [1], 'bad': [2 ** 70]})",
        Fails("column 'bad': "),
    ),
];

#[test]
fn an_index_of_pandas_is_written_where_it_is_named() {
    check_values(PANDAS);
}

/// A type of pandas whose arrays have no `__arrow_array__`.
const OWN_TYPE: &str = "
def own_array(values):
    import numpy as np
    import pandas as pd
    from pandas.api.extensions import ExtensionArray, ExtensionDtype, take

    class OwnType(ExtensionDtype):
        name, type, na_value = 'own', object, None
        construct_array_type = classmethod(lambda cls: OwnArray)

    class OwnArray(ExtensionArray):
        dtype = OwnType()
        nbytes = 0
        _from_sequence = classmethod(lambda cls, values, *, dtype=None, copy=False: cls(values))
        __len__ = lambda self: len(self.values)
        isna = lambda self: np.array([value is None for value in self.values], bool)
        copy = lambda self: OwnArray(self.values)

        def __init__(self, values):
            self.values = np.empty(len(values), object)
            self.values[:] = list(values)

        def __getitem__(self, index):
            value = self.values[index]
            return value if isinstance(index, (int, np.integer)) else OwnArray(value)

        def take(self, indices, allow_fill=False, fill_value=None):
            return OwnArray(take(self.values, indices, allow_fill=allow_fill, fill_value=fill_value))

        def factorize(self, use_na_sentinel=True):
            return np.arange(len(self)), self

        def _values_for_factorize(self):
            return self.values, None

    return OwnArray(values)
";

/// Columns, levels and arrays of types of pandas.
const PANDAS_TYPES: &[Case] = &[
    (
        "periods",
        "p = pd.period_range('2024-01', periods=2, freq='M')\nself.ctx.publish('t', pd.DataFrame({'p': p}, index=p.rename('i')))\nself.ctx.publish('t', {'p': pd.Series(p), 'i': p.array})",
        Rows(
            r#"[{"p": 648, "i": 648}, {"p": 649, "i": 649}, {"p": 648, "i": 648}, {"p": 649, "i": 649}]"#,
        ),
    ),
    (
        "periods_that_are_missing",
        "return pd.DataFrame({'p': pd.PeriodIndex(['2024-01-02', None], freq='D')})",
        Rows(r#"[{"p": 19724}, {"p": null}]"#),
    ),
    (
        "intervals",
        "return pd.DataFrame({'i': pd.IntervalIndex.from_tuples([(0, 1.5), None]), 'u': pd.interval_range(0, 2)}, index=pd.MultiIndex.from_arrays([pd.interval_range(5, 7), [1, 2]], names=['k', None]))",
        Rows(
            r#"[{"i": {"left": 0.0, "right": 1.5}, "u": {"left": 0, "right": 1}, "k": {"left": 5, "right": 6}}, {"i": null, "u": {"left": 1, "right": 2}, "k": {"left": 6, "right": 7}}]"#,
        ),
    ),
    (
        "intervals_of_times",
        "t = pd.Timestamp('2020-01-01 00:00:00.000000001')\nreturn pd.DataFrame({'i': pd.IntervalIndex.from_tuples([(t, t + pd.Timedelta(1, 'ns'))])})",
        Rows(
            r#"[{"i": {"left": "2020-01-01 00:00:00.000000001", "right": "2020-01-01 00:00:00.000000002"}}]"#,
        ),
    ),
    (
        "intervals_of_types_that_pandas_does_not_convert",
        "return pd.DataFrame({'a': [1], 'i': pd.IntervalIndex.from_breaks(pd.array([1, 2], dtype='Int64'))})",
        Fails("column 'i': pandas does not convert its type interval[Int64, right]"),
    ),
    (
        "level_of_a_type_that_pandas_does_not_convert",
        "return pd.DataFrame({'a': [1]}, index=pd.IntervalIndex.from_breaks(pd.array([1, 2], dtype='Int64'), name='i'))",
        Fails("column 'i': pandas does not convert its type interval[Int64, right]"),
    ),
    (
        "groups_of_intervals",
        "df = pd.DataFrame({'v': [1, 2, 4, 99]})\ndf['g'] = pd.cut(df.v, [0, 2, 4])\nself.ctx.publish('t', df[['v', 'g']])\nself.ctx.publish('t', df.groupby('g', observed=True).sum())\nself.ctx.publish('t', {'v': df.v, 'g': df.g.array})",
        Rows(
            r#"[{"v": 1, "g": {"left": 0, "right": 2}}, {"v": 2, "g": {"left": 0, "right": 2}}, {"v": 4, "g": {"left": 2, "right": 4}}, {"v": 99, "g": null}, {"v": 3, "g": {"left": 0, "right": 2}}, {"v": 4, "g": {"left": 2, "right": 4}}, {"v": 1, "g": {"left": 0, "right": 2}}, {"v": 2, "g": {"left": 0, "right": 2}}, {"v": 4, "g": {"left": 2, "right": 4}}, {"v": 99, "g": null}]"#,
        ),
    ),
    (
        "categories_of_every_type",
        "return pd.DataFrame({'p': pd.Categorical(pd.period_range('2024-01', periods=1, freq='M')), 't': pd.Categorical(pd.Index([pd.Timestamp('2020-01-01 00:00:00.000000001')], dtype=object)), 'n': pd.Categorical(pd.array([2 ** 53 + 1], dtype='Int64')), 's': pd.Categorical(['x'])})",
        Rows(
            r#"[{"p": 648, "t": "2020-01-01 00:00:00.000000001", "n": 9007199254740993, "s": "x"}]"#,
        ),
    ),
    (
        "arrays_of_every_type",
        "return {'n': pd.Categorical(pd.array([2 ** 53 + 1, None], dtype='Int64')), 'i': pd.array([2 ** 53 + 1, None], dtype='Int64'), 's': pd.array(['x', None], dtype=pd.StringDtype('python')), 'a': pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), 'o': pd.arrays.NumpyExtensionArray(np.array(['x', float('nan')], object)), 'z': pd.date_range('2020-01-01', periods=2, tz='UTC').array}",
        Rows(
            r#"[{"n": 9007199254740993, "i": 9007199254740993, "s": "x", "a": [1], "o": "x", "z": "2020-01-01 00:00:00+00:00"}, {"n": null, "i": null, "s": null, "a": null, "o": null, "z": "2020-01-02 00:00:00+00:00"}]"#,
        ),
    ),
    (
        "periods_in_rows",
        "return [{'p': pd.Period('2024-01')}]",
        Fails("column 'p': it has values of the class pandas.Period: give them as a pandas Series"),
    ),
    (
        "intervals_in_lists",
        "return pd.DataFrame({'i': [[pd.Interval(0, 1)]]})",
        Fails(
            "column 'i': it has values of the class pandas.Interval: give them as a pandas Series",
        ),
    ),
    (
        "complex_categories",
        "return pd.DataFrame({'c': pd.Categorical([1j])})",
        Fails("column 'c': it has values of the class numpy.complex128: give `value.real`"),
    ),
    (
        "sparse_objects",
        "return pd.DataFrame({'a': [1], 'd': pd.arrays.SparseArray(np.array([datetime.date(2020, 1, 1)], object))}, index=pd.MultiIndex.from_arrays([pd.arrays.SparseArray([5]), ['x']], names=['i', 'j']))",
        Rows(r#"[{"a": 1, "d": "2020-01-01", "i": 5, "j": "x"}]"#),
    ),
    (
        "sparse_dates_and_times",
        "return pd.DataFrame({'d': pd.arrays.SparseArray(np.array([datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 5)], object))})",
        Fails("column 'd': it has dates and date-times"),
    ),
    (
        "sparse_index",
        "return pd.DataFrame({'a': [1, 2]}, index=pd.Index(pd.arrays.SparseArray([0, 1]), name='i'))",
        Rows(r#"[{"a": 1, "i": 0}, {"a": 2, "i": 1}]"#),
    ),
    (
        "own_type",
        "a = own_array(['x', None])\nself.ctx.publish('t', pd.DataFrame({'o': a}))\nself.ctx.publish('t', {'o': a})\nself.ctx.publish('t', {'o': pd.Series(a)})",
        Rows(r#"[{"o": "x"}, {"o": null}, {"o": "x"}, {"o": null}, {"o": "x"}, {"o": null}]"#),
    ),
    (
        "own_type_of_mixed_values",
        "return pd.DataFrame({'o': own_array([datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 5)])})",
        Fails("column 'o': it has dates and date-times"),
    ),
    (
        "own_type_of_own_values",
        "return {'o': own_array([object()])}",
        Fails("column 'o': it has values of the class object"),
    ),
    (
        "own_type_in_an_index",
        "return pd.DataFrame({'a': [1]}, index=pd.Index(own_array(['x']), name='i'))",
        Fails("level 'i' of the index"),
    ),
    (
        "own_categories",
        "return pd.DataFrame({'a': [1], 'c': pd.Categorical(own_array(['x']))})",
        Fails("column 'c': "),
    ),
];

#[test]
fn columns_of_every_type_of_pandas_are_exact_or_refused_with_their_name() {
    check_both(OWN_TYPE, PANDAS_TYPES);
}

const EXACT: &[Case] = &[
    (
        "fields_of_bytes",
        "return np.frombuffer(b'\\x01\\x00\\xffAB\\x00', dtype=[('n', 'u1'), ('k', 'S5')])",
        Rows(r#"[{"n": 1, "k": "b'\\x00\\xffAB'"}]"#),
    ),
    (
        "columns_of_texts",
        "return {'s': np.array(['a\\0b', 'c']), 'm': np.ma.array(['a\\0b', 'c'], mask=[0, 1]), 'p': np.array([['a\\0b'], ['c']]), 'e': np.array(['d\\0e', 'f'], '>U3')}",
        Rows(
            r#"[{"s": "a\u0000b", "m": "a\u0000b", "p": ["a\u0000b"], "e": "d\u0000e"}, {"s": "c", "m": null, "p": ["c"], "e": "f"}]"#,
        ),
    ),
    (
        "nanoseconds_in_rows",
        "t = pd.Timestamp('2020-01-01 00:00:00.123456789')\nreturn [{'t': t, 'l': [t], 's': {'x': [{'y': t}]}}, {'t': pd.NaT, 'l': [None, pd.NaT]}]",
        Rows(
            r#"[{"t": "2020-01-01 00:00:00.123456789", "l": ["2020-01-01 00:00:00.123456789"], "s": {"x": [{"y": "2020-01-01 00:00:00.123456789"}]}}, {"t": null, "l": [null, null], "s": null}]"#,
        ),
    ),
    (
        "nanoseconds_in_columns",
        "t = pd.Timestamp('2020-01-01 00:00:00.123456789', tz='UTC')\nreturn {'t': [t, t.to_pydatetime(warn=False)], 'a': np.array([t, None]), 's': pd.Series([t, None], dtype=object)}",
        Rows(
            r#"[{"t": "2020-01-01 00:00:00.123456789+00:00", "a": "2020-01-01 00:00:00.123456789+00:00", "s": "2020-01-01 00:00:00.123456789+00:00"}, {"t": "2020-01-01 00:00:00.123456+00:00", "a": null, "s": null}]"#,
        ),
    ),
    (
        "nanoseconds_in_a_frame",
        "t = pd.Timestamp('2020-01-01 00:00:00.123456789')\nreturn pd.DataFrame({'n': [1, 2], 't': pd.Series([t, None], dtype=object), 'l': [[t], None]})",
        Rows(
            r#"[{"n": 1, "t": "2020-01-01 00:00:00.123456789", "l": ["2020-01-01 00:00:00.123456789"]}, {"n": 2, "t": null, "l": null}]"#,
        ),
    ),
    (
        "nanoseconds_of_spans",
        "d = pd.Timedelta(5, 'ns')\nself.ctx.publish('t', [{'d': d}])\nself.ctx.publish('t', pd.DataFrame({'d': pd.Series([d], dtype=object)}))",
        Rows(r#"[{"d": "0 days 00:00:00.000000005"}, {"d": "0 days 00:00:00.000000005"}]"#),
    ),
    (
        "no_time_among_dates",
        "return {'d': [datetime.date(2020, 1, 1), pd.NaT]}",
        Rows(r#"[{"d": "2020-01-01"}, {"d": null}]"#),
    ),
    (
        "zones",
        "return {'t': [datetime.datetime(2020, 1, 1, hour, tzinfo=datetime.timezone(datetime.timedelta(hours=hour))) for hour in (2, 5)]}",
        Rows(r#"[{"t": "2020-01-01 02:00:00+02:00"}, {"t": "2020-01-01 02:00:00+02:00"}]"#),
    ),
    (
        "sparse",
        "return pd.DataFrame({'s': pd.arrays.SparseArray([0, 1]), 'f': pd.arrays.SparseArray([float('nan'), 1.5])})",
        Rows(r#"[{"s": 0, "f": null}, {"s": 1, "f": 1.5}]"#),
    ),
    (
        "integers_of_128_bits",
        "return pl.DataFrame({'x': pl.Series([2 ** 100, None], dtype=pl.Int128)})",
        Rows(r#"[{"x": "1267650600228229401496703205376"}, {"x": null}]"#),
    ),
    (
        "dates_and_times_in_rows",
        "return [{'d': datetime.date(2020, 1, 1)}, {'d': datetime.datetime(2020, 1, 1, 5)}]",
        Fails("column 'd': it has dates and date-times: make all of them date-times"),
    ),
    (
        "dates_and_times_in_a_frame",
        "return pd.DataFrame({'d': [datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 5)]})",
        Fails("column 'd': it has dates and date-times: make all of them date-times"),
    ),
    (
        "dates_and_times_in_dicts",
        "return [{'d': {'x': datetime.date(2020, 1, 1)}}, {'d': {'x': datetime.datetime(2020, 1, 1, 5)}}]",
        Fails("column 'd': in 'x': it has dates and date-times"),
    ),
    (
        "dates_and_times_in_an_array",
        "return {'d': np.array([datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 5)])}",
        Fails("column 'd': it has dates and date-times"),
    ),
    (
        "times_with_a_zone",
        "return [{'t': datetime.time(5, tzinfo=datetime.timezone.utc)}]",
        Fails("column 't': it has times of day with a time zone"),
    ),
    (
        "some_with_a_zone",
        "return [{'t': datetime.datetime(2020, 1, 1)}, {'t': datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)}]",
        Fails("column 't': it has date-times with and without a time zone"),
    ),
    (
        "some_of_a_frame_with_a_zone",
        "return pd.DataFrame({'t': pd.Series([datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)], dtype=object)})",
        Fails("column 't': it has date-times with and without a time zone"),
    ),
    (
        "booleans_of_a_frame_that_are_missing",
        "return pd.DataFrame({'b': [True, float('nan')]}, dtype=object)",
        Rows(r#"[{"b": true}, {"b": null}]"#),
    ),
    (
        "booleans_and_numbers_of_a_frame",
        "return pd.DataFrame({'b': [1.5, True]}, dtype=object)",
        Fails("column 'b': it has numbers and booleans"),
    ),
    (
        "duckdb_times_with_a_zone",
        "return duckdb.sql(\"select ['12:00:00+02'::TIMETZ] t\")",
        Fails("column 't': Arrow does not have DuckDB's type TIME WITH TIME ZONE"),
    ),
    (
        "duckdb_connection_twice",
        "con = duckdb.connect()\nreturn [con.execute('select 1 a'), con.execute('select 2 a')]",
        Fails("a DuckDB connection without a result"),
    ),
    (
        "duckdb_connection_unused",
        "return duckdb.connect()",
        Fails("a DuckDB connection without a result"),
    ),
    (
        "duckdb_bits",
        "return duckdb.connect().execute(\"select 1 a, '101'::BIT b\")",
        Fails("column 'b': Arrow does not have DuckDB's type BIT"),
    ),
    (
        "duckdb_integers_that_wrap",
        "return duckdb.sql(\"select 340282366920938463463374607431768211455::UHUGEINT a\")",
        Fails(
            "column 'a': Arrow does not have DuckDB's type UHUGEINT: cast it in the query, as with CAST(\"a\" AS VARCHAR)",
        ),
    ),
    (
        "duckdb_hashes",
        "return duckdb.connect().execute(\"select 1 x, {'h': [md5_number('0')]} a\")",
        Fails("column 'a': Arrow does not have DuckDB's type UHUGEINT"),
    ),
    (
        "duckdb_large_numbers",
        "return duckdb.sql(\"select map {'k': [1::BIGNUM]} a\")",
        Fails("column 'a': Arrow does not have DuckDB's type BIGNUM"),
    ),
    (
        "duckdb_variants",
        "return duckdb.sql('select [{\\'x\\': 5::VARIANT}]::STRUCT(x VARIANT)[1] a')",
        Fails("column 'a': Arrow does not have DuckDB's type VARIANT"),
    ),
    (
        "duckdb_maps_without_a_key",
        "return duckdb.sql('select [MAP {}] a')",
        Fails("column 'a': Arrow does not have DuckDB's type MAP("),
    ),
    (
        "duckdb_maps_without_a_key_in_arrow",
        "return duckdb.sql('select 1 n, [MAP {}] a').to_arrow_table()",
        Fails("column 'a': A null type field may not be non-nullable; give it as another type"),
    ),
    (
        "duckdb_types",
        "return duckdb.sql('select get_type(1) a')",
        Fails("column 'a': Arrow does not have DuckDB's type TYPE"),
    ),
    (
        "duckdb_large_numbers_in_arrow",
        "return duckdb.sql('select [1::BIGNUM] a').to_arrow_table()",
        Fails("column 'a': Arrow does not have DuckDB's type BIGNUM"),
    ),
    (
        "duckdb_exact_types",
        "return duckdb.sql(\"select (-5)::HUGEINT h, '12:00:00'::TIME_NS n, 'BIT'::ENUM('BIT') e, {'UHUGEINT': 1} s, row(1, 'x') t, null u, [[1.5::DECIMAL(38, 5)]]::DECIMAL(38, 5)[1][] d, map {'k': 'v'} m\")",
        Rows(
            r#"[{"h": "-5", "n": "12:00:00", "e": "BIT", "s": {"UHUGEINT": 1}, "t": {"element1": 1, "element2": "x"}, "u": null, "d": [["1.50000"]], "m": [["k", "v"]]}]"#,
        ),
    ),
    (
        "surrogates",
        "return {'a': ['\\ud800']}",
        Fails("column 'a': a text that UTF-8 does not have"),
    ),
];

#[test]
fn values_are_exact_or_refused_with_their_column() {
    check_values(EXACT);
}

/// Values of a column, the same in a dict of lists, in rows, in lists and structs, in an array and in a data frame of
/// objects, and what its error says.
const MIXED: &[(&str, &str, &str)] = &[
    (
        "numpy_and_bool",
        "[np.float64(1.5), True]",
        "numbers and booleans",
    ),
    (
        "int_and_bool_of_numpy",
        "[5, np.bool_(True)]",
        "numbers and booleans",
    ),
    (
        "bool_of_numpy_first",
        "[np.bool_(True), 5]",
        "numbers and booleans",
    ),
    (
        "texts_and_bytes",
        "['x', b'y']",
        "bytes and texts: make all of them texts (`.decode()`)",
    ),
    (
        "bytes_and_a_text_of_numpy",
        "[bytearray(b'x'), np.str_('y')]",
        "bytes and texts",
    ),
    (
        "dates_and_numbers",
        "[datetime.date(2020, 1, 1), 5]",
        "dates and numbers",
    ),
    (
        "date_times_and_numbers",
        "[datetime.datetime(2020, 1, 1), np.float64(5.5)]",
        "date-times and numbers",
    ),
    (
        "times_and_booleans",
        "[datetime.time(5), True]",
        "times of day and booleans",
    ),
    (
        "durations_and_numbers",
        "[datetime.timedelta(1), 5]",
        "durations and numbers",
    ),
    (
        "uuids_and_numbers",
        "[uuid.UUID(int=1), 5]",
        "UUIDs and numbers",
    ),
    (
        "numbers_and_durations_of_numpy",
        "[5, np.timedelta64(1, 'ns')]",
        "durations of numpy and numbers",
    ),
    (
        "half_floats",
        "[5, np.float16(1.5)]",
        "half floats and integers",
    ),
    (
        "arrays_and_lists",
        "[np.array([1.5]), [True]]",
        "numbers and booleans",
    ),
    ("keys", "[{b'k': 1}, {'k': 2}]", "dicts with the key b'k'"),
    (
        "units_of_arrays",
        "[np.array([90], 'm8[s]'), np.array([90000], 'm8[ms]')]",
        "durations of numpy in the units ms and s: give all of them one of the units s, ms, us, ns",
    ),
    (
        "units_of_arrays_and_lists",
        "[[np.timedelta64(90, 's')], np.array([90000], 'm8[ms]')]",
        "durations of numpy in the units ms and s",
    ),
    (
        "units_of_masked_arrays",
        "[np.ma.array([90], 'm8[s]', mask=[0]), np.array([90], 'm8[ns]')]",
        "durations of numpy in the units ns and s",
    ),
    (
        "units_of_date_times",
        "[[np.datetime64(9, 's')], [np.datetime64(9, 'ms')]]",
        "date-times of numpy in the units ms and s",
    ),
    (
        "multiples_of_a_unit",
        "[[np.timedelta64(9, '10s')]]",
        "durations of numpy in the unit 10s, which Arrow does not have",
    ),
    (
        "days_of_numpy",
        "[[np.datetime64('2020-01-01')]]",
        "date-times of numpy in the unit D",
    ),
    (
        "unsigned_integers_and_floats",
        "[np.uint64(2 ** 64 - 1), 1.5]",
        "unsigned integers from 2**63 and floats",
    ),
    (
        "unsigned_integers_and_single_floats",
        "[np.float32(1.5), np.ulonglong(2 ** 64 - 1)]",
        "unsigned integers from 2**63 and floats",
    ),
    (
        "arrays_of_unsigned_integers_and_floats",
        "[np.array([1, 2 ** 64 - 1], 'u8'), np.array([0.5])]",
        "unsigned integers from 2**63 and floats",
    ),
    (
        "unsigned_integers_and_a_list_of_floats",
        "[[0.5], np.ma.array([2 ** 64 - 1], 'u8', mask=[0])]",
        "unsigned integers from 2**63 and floats",
    ),
    (
        "long_doubles",
        "[1, np.longdouble('2.9')]",
        "values of the class numpy.longdouble: give `float(value)`",
    ),
    (
        "arrays_of_long_doubles",
        "[np.array([0.9], np.longdouble), [1]]",
        "values of the class numpy.longdouble",
    ),
    (
        "complex_numbers",
        "[1, np.complex64(1j)]",
        "values of the class numpy.complex64: give `value.real`",
    ),
    (
        "arrays_of_complex_numbers",
        "[np.array([1j]), [1]]",
        "values of the class numpy.complex128",
    ),
    (
        "fractions",
        "[__import__('fractions').Fraction(1, 2), 5]",
        "values of the class fractions.Fraction: give values of Python or numpy that Arrow has",
    ),
    (
        "offsets",
        "[pd.DateOffset(months=1, hour=5)]",
        "values of the class pandas.",
    ),
    (
        "views_of_dicts",
        "[{'k': 1.5}.values(), {'k': True}.values()]",
        "numbers and booleans",
    ),
    (
        "decimals_and_floats",
        "[decimal.Decimal(1), 1.5]",
        "decimals and floats",
    ),
    (
        "half_floats_and_integers_of_numpy",
        "[np.float16(1.5), np.array([3001])[0]]",
        "half floats and integers",
    ),
    (
        "infinite",
        "[decimal.Decimal('Infinity')]",
        "a Decimal that is not finite",
    ),
];

#[test]
fn values_of_several_kinds_in_a_column_are_refused() {
    let shapes = [
        ("list", "return {'a': V}"),
        ("rows", "return [{'a': v} for v in V]"),
        ("nested", "return [{'a': [[v], {'s': v}][KIND]} for v in V]"),
        (
            "array",
            "values = np.empty(len(V), dtype=object)\nvalues[:] = V\nreturn {'a': values}",
        ),
        (
            "masked",
            "values = np.ma.masked_all(len(V), dtype=object)\nvalues[:] = V\nreturn {'a': values}",
        ),
        (
            "frame",
            "values = np.empty(len(V), dtype=object)\nvalues[:] = V\nreturn pd.DataFrame({'a': pd.Series(values)})",
        ),
    ];
    let leak = |text: String| -> &'static str { text.leak() };
    let mut cases: Vec<Case> = Vec::new();
    for (place, (name, values, words)) in MIXED.iter().enumerate() {
        for (shape, body) in shapes {
            // Each of the values below a list or below a struct.
            let body = body.replace("KIND", &(place % 2).to_string());
            let body = body.replace('V', values);
            let body = format!("import uuid, decimal\n{body}");
            let words = match shape {
                "nested" => format!("it has {words}"),
                _ => format!("column 'a': it has {words}"),
            };
            cases.push((
                leak(format!("{name}_{shape}")),
                leak(body),
                Fails(leak(words)),
            ));
        }
    }
    let frame = "df = pd.DataFrame({'id': [1, 2], 'name': ['x', None], 'day': pd.Series([datetime.date(2020, 1, 1), np.nan], dtype=object), 'ok': pd.Series([True, np.nan], dtype=object), 'n': [1.5, np.nan]})";
    for (name, value) in [
        ("frame_rows", "df.to_dict('records')"),
        ("frame_records", "df.to_records(index=False)"),
        ("frame_arrays", "{c: df[c].to_numpy() for c in df}"),
        ("frame_lists", "df.to_dict('list')"),
    ] {
        let rows = r#"[{"id": 1, "name": "x", "day": "2020-01-01", "ok": true, "n": 1.5}, {"id": 2, "name": null, "day": null, "ok": null, "n": "NaN"}]"#;
        cases.push((name, leak(format!("{frame}\nreturn {value}")), Rows(rows)));
    }
    cases.extend([
        (
            "uuids_in_lists",
            "import uuid\nreturn {'a': [[uuid.UUID(int=1)]]}",
            Fails("column 'a': it has UUIDs, which pyarrow does not convert within lists and dicts: give texts"),
        ),
        (
            "uuids_in_dicts",
            "import uuid\nreturn [{'a': {'k': uuid.UUID(int=1)}}]",
            Fails("column 'a': in 'k': it has UUIDs"),
        ),
        (
            "long_durations",
            "return {'a': [datetime.timedelta.max]}",
            Fails("column 'a': pyarrow does not convert its values (Timedelta too large to fit in 64-bit integer): give"),
        ),
        (
            "categories",
            "return pd.DataFrame({'a': pd.Categorical(['x', b'y'])})",
            Fails("column 'a': it has bytes and texts"),
        ),
        (
            "integers_beyond_64_bits",
            "return {'a': [2 ** 63, 1]}",
            Fails("column 'a': it has an integer that is out of the range of 64 bits"),
        ),
        (
            "missing_values_among_all_kinds",
            "return pd.DataFrame({'t': ['x', float('nan')], 'd': [datetime.date(2020, 1, 1), float('nan')], 'l': [[1], None], 'b': [pd.NaT, True]}, dtype=object)",
            Rows(
                r#"[{"t": "x", "d": "2020-01-01", "l": [1], "b": null}, {"t": null, "d": null, "l": null, "b": true}]"#,
            ),
        ),
        (
            "masked_values_of_values",
            "m = lambda v, **more: np.ma.array(v, mask=[0, 1], **more)\nreturn [{'i': m([1, -9999]), 'n': {'l': [m([1.5, 1e20])]}, 't': m(np.array(['2020-01-01', '2020-01-02'], 'M8[us]')), 'o': m(['x', 'y'], dtype=object), 'c': np.ma.masked}, {'c': 5}]",
            Rows(
                r#"[{"i": [1, null], "n": {"l": [[1.5, null]]}, "t": ["2020-01-01 00:00:00", null], "o": ["x", null], "c": null}, {"i": null, "n": null, "t": null, "o": null, "c": 5}]"#,
            ),
        ),
        (
            "masked_values_of_a_frame",
            "values = [np.ma.array([1, -9999], mask=[0, 1]), None]\nself.ctx.publish('t', {'v': values})\nself.ctx.publish('t', pd.DataFrame({'v': values}))",
            Rows(r#"[{"v": [1, null]}, {"v": null}, {"v": [1, null]}, {"v": null}]"#),
        ),
        (
            "masked_values_of_two_dimensions",
            "return {'v': [np.ma.array([[1, 2]], mask=[[0, 1]])]}",
            Fails("column 'v': a masked array must have one dimension"),
        ),
        (
            "long_doubles_of_an_array",
            "return np.array([(1,)], [('a', np.longdouble)])",
            Fails("column 'a': it has values of the class numpy.longdouble"),
        ),
        (
            "multiples_of_a_unit_of_an_array",
            "return {'a': np.array([9], 'm8[10s]')}",
            Fails("column 'a': it has durations of numpy in the unit 10s"),
        ),
        (
            "days_of_an_array",
            "return {'a': np.array(['2020-01-02'], 'M8[D]')}",
            Rows(r#"[{"a": "2020-01-02"}]"#),
        ),
        (
            "unsigned_integers_that_fit",
            "return {'u': [np.uint64(2 ** 64 - 1), None], 'f': [np.uint64(5), 1.5], 'l': [np.array([2 ** 64 - 1], 'u8'), None], 's': pd.Series([np.uint64(2 ** 64 - 1), float('nan')], dtype=object)}",
            Rows(
                r#"[{"u": 18446744073709551615, "f": 5.0, "l": [18446744073709551615], "s": 18446744073709551615}, {"u": null, "f": 1.5, "l": null, "s": null}]"#,
            ),
        ),
        (
            "units_that_are_one",
            "return {'s': [np.timedelta64('NaT'), np.timedelta64(9, 's')], 'l': [np.array([], 'm8[s]'), np.array([9], 'm8[ms]')]}",
            Rows(r#"[{"s": null, "l": []}, {"s": "0:00:09", "l": ["0:00:00.009000"]}]"#),
        ),
        (
            "missing_values_within_values",
            "import decimal\nnan = float('nan')\nreturn [{'l': ['x', nan], 's': {'d': nan, 'n': nan}, 'a': np.array(['x', np.float32(nan)], object), 'v': nan, 'i': pd.NA, 'c': decimal.Decimal(1)}, {'l': [nan], 's': {'d': datetime.date(2020, 1, 1), 'n': 1.5}, 'a': None, 'v': [pd.NA, 1], 'i': 5, 'c': nan}]",
            Rows(
                r#"[{"l": ["x", null], "s": {"d": null, "n": "NaN"}, "a": ["x", null], "v": null, "i": null, "c": "1"}, {"l": [null], "s": {"d": "2020-01-01", "n": 1.5}, "a": null, "v": [null, 1], "i": 5, "c": null}]"#,
            ),
        ),
        (
            "missing_values_of_one_class",
            "return [{'m': float('nan')}, {'m': np.datetime64('NaT')}, {'m': 'x'}, {'m': np.float32('nan')}]",
            Rows(r#"[{"m": null}, {"m": null}, {"m": "x"}, {"m": null}]"#),
        ),
        (
            "decimals_and_integers",
            "from decimal import Decimal\nvalues = [Decimal('0.01'), 12345678901234567890, np.int8(-5), None]\nself.ctx.publish('t', {'v': values})\nself.ctx.publish('t', pd.DataFrame({'v': values}))",
            Rows(
                r#"[{"v": "0.01"}, {"v": "12345678901234567890.00"}, {"v": "-5.00"}, {"v": null}, {"v": "0.01"}, {"v": "12345678901234567890.00"}, {"v": "-5.00"}, {"v": null}]"#,
            ),
        ),
        (
            "decimals_and_arrays_of_integers",
            "import decimal\nreturn [{'v': [decimal.Decimal('0.01')]}, {'v': np.array([7, 100], 'u1')}]",
            Rows(r#"[{"v": ["0.01"]}, {"v": ["7.00", "100.00"]}]"#),
        ),
        (
            "empty_arrays",
            "values = [np.array([]), ['x'], np.array([])]\nself.ctx.publish('t', {'v': values})\nself.ctx.publish('t', pd.DataFrame({'v': values}))",
            Rows(r#"[{"v": []}, {"v": ["x"]}, {"v": []}, {"v": []}, {"v": ["x"]}, {"v": []}]"#),
        ),
        (
            "empty_arrays_alone",
            "self.ctx.publish('t', {'v': [np.array([])]})\nself.ctx.publish('t', {'v': [np.array([1.5])]})",
            Rows(r#"[{"v": []}, {"v": [1.5]}]"#),
        ),
        (
            "masked_constants_of_a_frame",
            "return pd.DataFrame({'v': [1.5, np.ma.masked], 'v2': ['x', 'y']}, index=pd.Index([7, 8], name='i'))",
            Rows(r#"[{"v": 1.5, "v2": "x", "i": 7}, {"v": null, "v2": "y", "i": 8}]"#),
        ),
        (
            "names_like_types",
            "return pl.DataFrame({'s': [{'Int128': 1}]})",
            Rows(r#"[{"s": {"Int128": 1}}]"#),
        ),
        (
            "integers_of_128_bits_in_structs",
            "return pl.DataFrame({'s': [[{'x': 1}]]}, schema={'s': pl.List(pl.Struct({'x': pl.Int128}))})",
            Fails("column 's': it has integers of 128 bits"),
        ),
        (
            "one_kind",
            "return {'n': [1, np.int8(2)], 'f': [1, 1.5], 't': ['x', np.str_('y')], 'b': [b'x', bytearray(b'y')], 'l': [[1], (2,)], 'a': [np.array([1.5]), [2]]}",
            Rows(
                r#"[{"n": 1, "f": 1.0, "t": "x", "b": "b'x'", "l": [1], "a": [1.5]}, {"n": 2, "f": 1.5, "t": "y", "b": "b'y'", "l": [2], "a": [2.0]}]"#,
            ),
        ),
    ]);
    check("", &cases, &["--plugin-start", "warm"]);
}

const REFUSED: &[Case] = &[
    (
        "json_that_is_none",
        "field = pa.field('j', pa.struct([pa.field('t', pa.string(), metadata={'ARROW:extension:name': 'arrow.json'})]))\nreturn pa.table([pa.array([{'t': '{}'}, {'t': ''}])], schema=pa.schema([field]))",
        Fails("column \"j\": it has the extension type arrow.json, and the text \"\" is not JSON"),
    ),
    (
        "text",
        "return 'text'",
        Fails("str is not accepted: a plugin's output must be a pandas DataFrame"),
    ),
    ("texts", "return ['a', 'b']", Fails("str is not accepted")),
    ("number", "yield 1", Fails("int is not accepted")),
    (
        "a_class",
        "return pd.DataFrame",
        Fails("type is not accepted"),
    ),
    (
        "pandas_series",
        "return pd.Series([1])",
        Fails("pandas.Series is not accepted"),
    ),
    (
        "pandas_row",
        "return pd.read_csv(path).iloc[0]",
        Fails("pandas.Series is not accepted: a plugin's output must be a pandas DataFrame"),
    ),
    (
        "pandas_mixed",
        "return pd.Series([1, 'x'])",
        Fails("pandas.Series is not accepted"),
    ),
    (
        "pandas_structs_of_several_kinds",
        "return pd.Series([{'a': 1}, {'a': 'x'}])",
        Fails("pandas.Series is not accepted (column '"),
    ),
    (
        "polars_series",
        "return pl.Series([1])",
        Fails("is not accepted: a plugin's output must be a pandas DataFrame"),
    ),
    (
        "chunks_of_numbers",
        "return pa.chunked_array([[1, None]])",
        Fails("pyarrow.lib.ChunkedArray is not accepted: a plugin's output must be"),
    ),
    (
        "null_rows_of_a_stream",
        "class Own:\n    def __arrow_c_stream__(self, schema=None): return pa.chunked_array([pa.array([{'a': 1}]), pa.array([{'a': 2}, None])]).__arrow_c_stream__(schema)\nreturn Own()",
        Fails("Own is not accepted (a row of its structs is null): a plugin's output must be"),
    ),
    (
        "null_rows_of_an_array",
        "class Own:\n    def __arrow_c_array__(self, schema=None): return pa.array([{'a': 2}, None]).__arrow_c_array__(schema)\nreturn Own()",
        Fails("Own is not accepted (a row of its structs is null): a plugin's output must be"),
    ),
    // Classes of code that is run without `__name__` have no `__module__`.
    (
        "array_of_a_class_without_module",
        "space = {'get': lambda self, schema=None: pa.array([{'a': 2}, None]).__arrow_c_array__(schema)}\nexec(\"Own = type('Own', (), {'__arrow_c_array__': get})\", space)\nreturn space['Own']()",
        Fails("Own is not accepted (a row of its structs is null): a plugin's output must be"),
    ),
    (
        "stream_of_a_class_without_module",
        "space = {'get': lambda self, schema=None: pa.chunked_array([pa.array([1])]).__arrow_c_stream__(schema)}\nexec(\"Own = type('Own', (), {'__arrow_c_stream__': get})\", space)\nreturn space['Own']()",
        Fails("Own is not accepted ("),
    ),
    (
        "object_of_a_class_without_module",
        "space = {}\nexec(\"Own = type('Own', (), {})\", space)\nreturn space['Own']()",
        Fails("Own is not accepted: a plugin's output must be"),
    ),
    (
        "values_of_a_class_without_module",
        "space = {}\nexec(\"Own = type('Own', (complex,), {})\", space)\nreturn {'a': [space['Own'](1)]}",
        Fails("values of the class Own"),
    ),
    (
        "exception_of_a_class_without_module",
        "space = {}\nexec(\"Own = type('Own', (Exception,), {})\", space)\nraise space['Own']('what')",
        Fails("Own: what"),
    ),
    (
        "array",
        "return np.array([1])",
        Fails("numpy.ndarray is not accepted"),
    ),
    (
        "arrow_array",
        "return pa.array([1])",
        Fails("is not accepted"),
    ),
    (
        "lengths",
        "return {'a': [1], 'b': [1, 2]}",
        Fails("column 'a' has 1 values, column 'b' has 2"),
    ),
    (
        "scalars",
        "return {'a': 1}",
        Fails("column 'a' is a int, not a list or an array"),
    ),
    (
        "string_column",
        "return {'a': 'xyz'}",
        Fails("column 'a' is a str"),
    ),
    (
        "frames_by_name",
        "return {'t': pd.DataFrame({'a': [1]})}",
        Fails("for several tables use ctx.publish"),
    ),
    (
        "number_as_name",
        "return {1: [1]}",
        Fails("must be a string, not 1"),
    ),
    (
        "mixed_column",
        "return {'a': [1, 'x']}",
        Fails("column 'a': "),
    ),
    (
        "mixed_rows",
        "return [{'a': 1}, {'a': 'x'}]",
        Fails("column 'a': "),
    ),
    (
        "rows_and_tables",
        "return [{'a': 1}, pa.table({'a': [1]})]",
        Fails("a list of dicts is one table"),
    ),
    (
        "in_itself",
        "items = []\nitems.append(items)\nreturn items",
        Fails("more than 32 deep"),
    ),
    (
        "objects",
        "return pl.DataFrame({'o': [object()]})",
        Fails("column 'o': it has Python objects"),
    ),
    (
        "complex",
        "return np.array([(1j,)], dtype=[('z', 'c16')])",
        Fails("column 'z': "),
    ),
];

#[test]
fn what_is_no_table_is_refused_with_what_may_be_returned() {
    check_values(REFUSED);
}

/// The most memory that a plugin process may have had, checked by the plugin itself.
const LIMIT: &str = "import resource\nused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\nif used > 300: raise MemoryError(f'{used} MiB')";

#[test]
fn results_stream_and_memory_stays_bounded() {
    let cases: [(&str, String); 3] = [
        (
            "reader",
            format!(
                "def batches():\n    for n in range(300): yield pa.record_batch({{'x': np.full(1 << 18, n)}})\n\
                 yield pa.RecordBatchReader.from_batches(pa.schema({{'x': pa.int64()}}), batches())\n{LIMIT}"
            ),
        ),
        (
            "relation",
            format!(
                "yield duckdb.sql(\"select range x, 'some text of a length ' || range s from range(10_000_000)\")\n{LIMIT}"
            ),
        ),
        (
            "mapped",
            format!(
                "np.lib.format.open_memmap('m', 'w+', [('x', 'i8')], (15_000_000,))\n\
                 yield np.lib.format.open_memmap('m', 'r')\n{LIMIT}"
            ),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    let mut source = format!("{HEADER}{HANDLER}");
    for (name, body) in &cases {
        std::fs::write(inputs.join(name), "").unwrap();
        let body = (imports(body) + body).replace('\n', "\n        ");
        write!(source, "\n    def {name}(self, path):\n        {body}\n").unwrap();
    }
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, source).unwrap();
    let inputs = [inputs.to_str().unwrap()];
    let out = dir.path().join("out");
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &["--slots", "1"]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(
        summary["totals"]["rows"],
        (300 << 18) + 10_000_000 + 15_000_000
    );
}

/// Runs a plugin under the old worker's side of the bridge; gives the sizes of its frames and the rows.
fn frames(body: &str) -> (Vec<usize>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let body = body.replace('\n', "\n        ");
    let source = format!(
        "import pyarrow as pa, polars as pl\nclass Handler:\n    def execute(self, path):\n        {body}\n"
    );
    std::fs::write(path("p.py"), source).unwrap();
    std::fs::write(path("shim.py"), casparian::plugin::SHIM).unwrap();
    std::fs::write(path("in"), "").unwrap();
    let mut command = peer("old_worker_bridge.py");
    for (flag, name) in [
        ("--shim", "shim.py"),
        ("--plugin", "p.py"),
        ("--file", "in"),
        ("--raw", "raw"),
    ] {
        command.arg(flag).arg(path(name));
    }
    let output = output(&mut command);
    let seen: Value = serde_json::from_str(stdout(&output).trim())
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    assert_eq!(seen["exit_code"], 0, "{body}: {seen}");
    let raw = std::fs::read(path("raw")).unwrap();
    let mut sizes = Vec::new();
    let mut rest = raw.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let size = u32::from_be_bytes(*length) as usize;
        if size == 0 {
            break;
        }
        sizes.push(size);
        rest = &behind[size..];
    }
    (sizes, seen["rows"].as_u64().unwrap())
}

#[test]
fn frames_are_small_whatever_the_sizes_of_rows_buffers_and_dictionaries() {
    // Name, body, rows, most bytes of all frames.
    let cases = [
        (
            "uneven rows",
            "yield pa.table({'s': ['a'] * 10_000 + ['x' * 3_000_000] * 20 + ['b'] * 10_000})",
            20_020,
            70_000_000,
        ),
        (
            "views",
            "yield pa.table({'s': pa.array([f'text that is longer than a view {n}' for n in range(300_000)], pa.string_view())})",
            300_000,
            20_000_000,
        ),
        (
            "views in lists",
            "yield pa.table({'s': pa.array([[f'text that is longer than a view {n}'] for n in range(300_000)], pa.list_(pa.string_view()))})",
            300_000,
            20_000_000,
        ),
        (
            "polars",
            "yield pl.select(s=pl.lit('text that is longer than a view ') + pl.int_range(300_000).cast(pl.String))",
            300_000,
            20_000_000,
        ),
        (
            "large dictionary",
            "yield pa.table({'d': pa.chunked_array([pa.array([f'{n}' * 40 for n in range(50_000)]).dictionary_encode()])})",
            50_000,
            20_000_000,
        ),
        (
            "large values in a nested dictionary",
            "d = pa.DictionaryArray.from_arrays(pa.array([n % 40 for n in range(400)]), pa.array([chr(65 + n) * 1_000_000 for n in range(40)]))\nyield pa.table({'s': pa.StructArray.from_arrays([d], names=['d'])})",
            400,
            415_000_000,
        ),
    ];
    for (name, body, rows, total_max) in cases {
        let (sizes, seen) = frames(body);
        assert_eq!(seen, rows, "{name}");
        let largest = sizes.iter().max().unwrap();
        assert!(*largest < 6 << 20, "{name}: a frame of {largest} bytes");
        let total: usize = sizes.iter().sum();
        assert!(total < total_max, "{name}: {total} bytes");
    }
}

#[test]
fn views_reach_readers_as_plain_strings() {
    let cases: &[Case] = &[(
        "views",
        "yield pl.DataFrame({'s': ['x', None]})\nself.ctx.publish('t', pa.table({'s': pa.array(['x', None], pa.string_view()), 'l': pa.array([['x'], None], pa.list_view(pa.binary_view()))}))",
        Rows(r#"[{"s": "x"}, {"s": null}, {"s": "x", "l": ["b'x'"]}, {"s": null, "l": null}]"#),
    )];
    check_values(cases);
    let dir = tempfile::tempdir().unwrap();
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    let body = "\nclass Handler:\n    def execute(self, path):\n        yield pl.DataFrame({'s': ['x', 'y']})\n";
    std::fs::write(&plugin, format!("{HEADER}{}{body}", imports(body))).unwrap();
    std::fs::write(&input, "").unwrap();
    let out = dir.path().join("out");
    let inputs = [input.to_str().unwrap()];
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &[]);
    assert_eq!(code, Some(0), "{summary}");
    let types: Vec<Value> = read_parquet(&out)
        .into_iter()
        .map(|engine| engine["types"]["s"].clone())
        .collect();
    assert_eq!(types, ["large_string", "VARCHAR", "String"]);
}

#[test]
fn metadata_that_is_no_text_is_left_out_with_a_line_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        for n in range(3): yield pa.table({'a': [n]}).replace_schema_metadata({'geo': b'\\xff'})\n";
    let database = database_with(dir.path(), "p", source);
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let id = submit(&database, "p", &[input])[0];
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    let job = ended(&database, id);
    assert_eq!(job["status"], "COMPLETED", "{job}");
    assert_eq!(job["receipt"]["metrics"]["rows"], 3, "{job}");
    let log = job["log"].as_str().unwrap();
    let line = "casparian: metadata b'geo' of the schema is not UTF-8 and was left out";
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

/// Prints the metadata of the schema of a Parquet file, with the file's folder.
const METADATA: &str = "\
import json, os, sys
import pyarrow.parquet as pq
for path in json.loads(sys.argv[1]):
    found = pq.read_schema(path).metadata or {}
    keys = {key.decode(): value.decode() for key, value in found.items() if key != b'pandas'}
    print(os.path.basename(os.path.dirname(path)), json.dumps(keys, sort_keys=True))
";

/// The key under which the topic is sent may be in an input, because pyarrow returns a footer's metadata
/// with the table.
#[test]
fn metadata_of_data_does_not_choose_the_topic() {
    let cases = [
        ("table", "return pq.read_table(INPUT)"),
        ("batch", "yield TABLE.to_batches()[0]"),
        ("reader", "yield TABLE.to_reader()"),
        ("list", "return [None, (TABLE,)]"),
        ("dataset", "return ds.dataset(INPUT)"),
        ("stream", "yield Stream()"),
        ("array", "yield Array()"),
        (
            "views",
            "yield TABLE.set_column(0, 'a', pa.array(['x'], pa.string_view()))",
        ),
        ("published", "self.ctx.publish('t', pq.read_table(INPUT))"),
        (
            "published_first",
            "self.ctx.publish('t', TABLE)\nreturn TABLE",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    let mut source = format!(
        "{HEADER}\
         import pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq\n\
         INPUT = 'input.parquet'\n\
         KEYS = {{'casparian.topic': '../zz', 'casparian.other': 'kept', 'by': 'us'}}\n\
         TABLE = pa.table({{'a': [1]}}).replace_schema_metadata(KEYS)\n\
         pq.write_table(TABLE, INPUT)\n\
         class Stream:\n    def __arrow_c_stream__(self, schema=None): return TABLE.__arrow_c_stream__(schema)\n\
         class Array:\n    def __arrow_c_array__(self, schema=None): return TABLE.to_batches()[0].__arrow_c_array__(schema)\n\
         {HANDLER}"
    );
    for (name, body) in &cases {
        std::fs::write(inputs.join(name), "").unwrap();
        let body = body.replace('\n', "\n        ");
        write!(source, "\n    def {name}(self, path):\n        {body}\n").unwrap();
    }
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, source).unwrap();
    let inputs = [inputs.to_str().unwrap()];
    let out = dir.path().join("out");
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &[]);
    assert_eq!(code, Some(0), "{summary}");
    for file in summary["files"].as_array().unwrap() {
        let name = Path::new(file["file"].as_str().unwrap())
            .file_name()
            .unwrap();
        let folders: &[&str] = match name.to_str().unwrap() {
            "published" => &["p_t"],
            "published_first" => &["p", "p_t"],
            _ => &["p"],
        };
        let outputs = file["outputs"].as_array().unwrap().iter();
        let paths: Vec<&str> = outputs
            .map(|uri| uri.as_str().unwrap().strip_prefix("file://").unwrap())
            .collect();
        let paths = serde_json::to_string(&paths).unwrap();
        let output = output(Command::new(python()).args(["-c", METADATA, &paths]));
        assert!(output.status.success(), "{}", stderr(&output));
        let keys = r#"{"by": "us", "casparian.other": "kept"}"#;
        let printed = stdout(&output);
        let mut found: Vec<&str> = printed.lines().collect();
        found.sort_unstable();
        let want: Vec<String> = folders
            .iter()
            .map(|folder| format!("{folder} {keys}"))
            .collect();
        assert_eq!(found, want, "{name:?}");
        let log = crate::types::log_of(out.to_str().unwrap(), file["job"].as_i64().unwrap());
        let line = "casparian: metadata b'casparian.topic' of the schema was left out";
        assert_eq!(log.matches(line).count(), 1, "{name:?}: {log}");
    }
}

#[test]
fn a_byte_order_mark_and_windows_lines_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    let body = "class Handler:\n    def execute(self, path):\n        return {'a': ['''x\ny''']}\n";
    let source = format!("\u{feff}{HEADER}{body}").replace('\n', "\r\n");
    std::fs::write(&plugin, source).unwrap();
    std::fs::write(&input, "").unwrap();
    let inputs = [input.to_str().unwrap()];
    let out = dir.path().join("out");
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &[]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(
        rows_of(&summary["files"][0]),
        serde_json::json!([{"a": "x\ny"}])
    );
}
