//! Unit tests of `geo.rs`.

use super::*;

fn fields(columns: &[(&str, DataType)]) -> Vec<FieldRef> {
    let field = |(name, data_type): &(&str, DataType)| {
        FieldRef::new(Field::new(*name, data_type.clone(), true))
    };
    columns.iter().map(field).collect()
}

fn point() -> DataType {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    DataType::Struct(vec![number("x"), number("y")].into())
}

fn list(item: DataType) -> DataType {
    DataType::new_list(item, true)
}

/// Metadata with one column `g`.
fn geo(column: Value) -> Value {
    json!({"version": "1.1.0", "primary_column": "g", "columns": {"g": column}})
}

fn wkb() -> Value {
    json!({"encoding": "WKB", "geometry_types": ["Point"]})
}

fn with(mut object: Value, more: Value) -> Value {
    let object = object.as_object_mut().unwrap();
    for (key, value) in more.as_object().unwrap() {
        match value {
            Value::String(text) if text == "absent" => object.remove(key),
            value => object.insert(key.clone(), value.clone()),
        };
    }
    Value::Object(object.clone())
}

#[test]
fn valid_metadata_stays_as_it_is() {
    use DataType as T;
    let covering = json!({"bbox": {
        "xmin": ["b", "xmin"], "ymin": ["b", "ymin"], "xmax": ["b", "xmax"], "ymax": ["b", "ymax"],
    }});
    let deep = with(
        covering["bbox"].clone(),
        json!({"zmin": ["b", "zmin"], "zmax": ["b", "zmax"]}),
    );
    let sides = ["xmin", "ymin", "zmin", "xmax", "ymax", "zmax"];
    let sides = sides.map(|name| Field::new(name, T::Float32, true));
    let bounds = T::Struct(sides.to_vec().into());
    for (data_type, more) in [
        (T::Binary, json!({})),
        (
            T::LargeBinary,
            json!({"geometry_types": [], "edges": "spherical"}),
        ),
        (T::Binary, json!({"crs": null, "bbox": [0, 0, 1.25, 1]})),
        (
            T::Binary,
            json!({"crs": {"name": "x"}, "bbox": [0, 0, 0, 1, 1, 1]}),
        ),
        (T::Binary, json!({"covering": covering})),
        (T::Binary, json!({"covering": {"bbox": deep}})),
        (point(), json!({"encoding": "point"})),
        (list(point()), json!({"encoding": "linestring"})),
        (list(point()), json!({"encoding": "multipoint"})),
        (list(list(point())), json!({"encoding": "polygon"})),
        (
            list(list(list(point()))),
            json!({"encoding": "multipolygon"}),
        ),
    ] {
        let mut notes = Vec::new();
        let fields = fields(&[("a", T::Int64), ("g", data_type), ("b", bounds.clone())]);
        let text = format!(" {} ", geo(with(wkb(), more)));
        assert_eq!(of_file(&text, &fields, &mut notes), Some(text));
        assert_eq!(notes, [""; 0]);
    }
}

#[test]
fn a_covering_is_left_out_if_the_file_lacks_one_of_its_columns() {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    let sides = ["xmin", "ymin", "xmax", "ymax", "mmin", "mmax"].map(number);
    let bounds = DataType::Struct(sides.to_vec().into());
    let fields = fields(&[("g", DataType::Binary), ("b", bounds)]);
    let sides = ["xmin", "ymin", "xmax", "ymax"].map(|side| (side.to_owned(), json!(["b", side])));
    let flat = Value::Object(sides.into_iter().collect());
    for (more, stays) in [
        (json!({}), true),
        (json!({"mmin": ["b", "mmin"], "mmax": ["b", "mmax"]}), true),
        (json!({"zmin": ["b", "zmin"], "zmax": ["b", "zmax"]}), false),
        (json!({"zmax": ["q", "z"]}), false),
        (json!({"mmax": ["b", "z"]}), false),
        (json!({"zmin": null}), false),
        (json!({"xmin": ["b", "zmin"]}), false),
    ] {
        let given = geo(with(
            wkb(),
            json!({"covering": {"bbox": with(flat.clone(), more.clone())}}),
        ));
        let mut notes = Vec::new();
        let found = of_file(&given.to_string(), &fields, &mut notes).unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        match stays {
            true => assert_eq!((found, notes.len()), (given, 0), "{more}"),
            false => {
                assert_eq!(found, geo(wkb()), "{more}");
                let note =
                    r#"column "g": in the metadata of GeoParquet, its covering names columns"#;
                assert!(
                    notes.iter().any(|it| it.starts_with(note)),
                    "{more}: {notes:?}"
                );
            }
        }
    }
}

/// <https://geoparquet.org/releases/v1.1.0/>: `crs` is OGC:CRS84 and `edges` are planar by default.
#[test]
fn a_default_that_one_batch_spells_out_is_the_same() {
    let crs84 = json!({"type": "GeographicCRS", "id": {"authority": "OGC", "code": "CRS84"}});
    let merged = |first: &Value, second: &Value| {
        let of = |more: &Value| geo(with(wkb(), more.clone())).to_string();
        let found = merge(&of(first), &of(second)).map_err(|error| error.to_string())?;
        Ok::<Value, String>(serde_json::from_str(&found.unwrap()).unwrap())
    };
    let spelled_out = json!({"edges": "planar", "crs": crs84});
    let in_other_words = json!({"crs": with(crs84.clone(), json!({"name": "WGS 84 (CRS84)"}))});
    for (first, second, want) in [
        (json!({}), json!({"edges": "planar"}), json!({})),
        (json!({}), json!({"crs": crs84}), json!({})),
        (json!({}), spelled_out.clone(), json!({})),
        (
            spelled_out.clone(),
            spelled_out.clone(),
            spelled_out.clone(),
        ),
        (spelled_out.clone(), in_other_words, json!({})),
    ] {
        let want = Ok(geo(with(wkb(), want)));
        assert_eq!(merged(&first, &second), want, "{first} {second}");
        assert_eq!(merged(&second, &first), want, "{second} {first}");
    }
    for (first, second, words) in [
        (json!({}), json!({"edges": "spherical"}), "its edges in"),
        (
            json!({"edges": "planar"}),
            json!({"edges": "spherical"}),
            "its edges in",
        ),
        (json!({}), json!({"edges": null}), "its edges in"),
        (json!({}), json!({"crs": null}), "its crs in"),
        (json!({"crs": crs84}), json!({"crs": null}), "its crs in"),
        (
            json!({}),
            json!({"crs": {"id": {"authority": "EPSG", "code": 4326}}}),
            "its crs in",
        ),
        (
            json!({}),
            json!({"crs": {"id": {"authority": "OGC", "code": "CRS84h"}}}),
            "its crs in",
        ),
        (json!({}), json!({"crs": {"name": "x"}}), "its crs in"),
        (
            json!({}),
            json!({"orientation": "counterclockwise"}),
            "its orientation in",
        ),
        (json!({}), json!({"epoch": 2020}), "its epoch in"),
    ] {
        for (first, second) in [(&first, &second), (&second, &first)] {
            let error = merged(first, second).unwrap_err();
            assert!(error.contains(words), "{first} {second}: {error}");
        }
    }
}

#[test]
fn what_contradicts_the_file_or_the_specification_is_left_out_and_noted() {
    use DataType as T;
    let left_out = r#"column "g": its entry in the metadata of GeoParquet was left out: "#;
    let entry = |reason: &str| format!("{left_out}{reason}");
    let whole =
        |reason: &str| format!(r#"the metadata of GeoParquet ("geo") was left out: {reason}"#);
    let of = |data_type: &T| format!("and the column has the type {data_type}");
    let half = Field::new("x", T::Float64, true);
    let half = T::Struct(vec![half].into());
    let second = json!({"g": wkb(), "h": wkb()});
    let unknown = with(wkb(), json!({"geometry_types": []}));
    let plain = || geo(wkb());
    let cases: Vec<(T, Value, Option<Value>, String)> = vec![
            (T::Utf8, plain(), None, entry("the encoding WKB needs bytes, ") + &of(&T::Utf8)),
            (T::LargeUtf8, plain(), None, of(&T::LargeUtf8)),
            (T::Int64, plain(), None, of(&T::Int64)),
            (T::Null, plain(), None, of(&T::Null)),
            (T::FixedSizeBinary(21), plain(), None, of(&T::FixedSizeBinary(21))),
            (list(T::Binary), plain(), None, of(&list(T::Binary))),
            (T::Binary, geo(with(wkb(), json!({"encoding": "WKT"}))), None,
                entry(r#"GeoParquet has no encoding "WKT""#)),
            (T::Binary, geo(with(wkb(), json!({"encoding": "wkb"}))), None,
                entry(r#"GeoParquet has no encoding "wkb""#)),
            (T::Binary, geo(with(wkb(), json!({"encoding": "absent"}))), None, entry("it has no encoding")),
            (T::Binary, geo(with(wkb(), json!({"encoding": 1}))), None, entry("it has no encoding")),
            (T::Binary, geo(with(wkb(), json!({"encoding": "point"}))), None,
                entry("the encoding point needs structs of doubles x and y, or lists of these, ")
                    + &of(&T::Binary)),
            (list(point()), geo(with(wkb(), json!({"encoding": "point"}))), None, entry("the encoding point")),
            (point(), geo(with(wkb(), json!({"encoding": "polygon"}))), None, entry("the encoding polygon")),
            (half.clone(), geo(with(wkb(), json!({"encoding": "point"}))), None, entry("the encoding point")),
            (T::Binary, geo(with(wkb(), json!({"crs": "EPSG:4326"}))), None,
                entry("its crs is neither a PROJJSON object nor null")),
            (T::Binary, geo(json!([])), None, entry("it is no JSON object")),
            (T::Binary, json!([]), None, whole("it is no JSON object")),
            (T::Binary, json!({}), None, whole("it has no version")),
            (T::Binary, with(plain(), json!({"version": 1})), None, whole("it has no version")),
            (T::Binary, with(plain(), json!({"columns": []})), None, whole("its columns are no JSON object")),
            (T::Binary, json!({"version": "1.0.0"}), Some(json!({"version": "1.0.0", "columns": {}})),
                "the metadata of GeoParquet has no columns".to_owned()),
            (T::Binary, with(plain(), json!({"columns": second})), Some(plain()),
                r#"column "h": its entry in the metadata of GeoParquet was left out: the file has no such column"#
                    .to_owned()),
            (T::Binary, with(plain(), json!({"columns": second, "primary_column": "h"})), Some(plain()),
                r#"column "g": it is the primary column"#.to_owned()),
            (T::Binary, with(plain(), json!({"primary_column": "absent"})), Some(plain()),
                r#"column "g": it is the primary column"#.to_owned()),
            (T::Binary, geo(with(wkb(), json!({"geometry_types": "Point"}))), Some(geo(unknown.clone())),
                r#"column "g": in the metadata of GeoParquet, its geometry_types are no list"#.to_owned()),
            (T::Binary, geo(with(wkb(), json!({"geometry_types": "absent"}))), Some(geo(unknown)),
                "its geometry_types are no list".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"bbox": [1, 2, 3]}))), Some(plain()), "its bbox".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"bbox": ["1", 2, 3, 4]}))), Some(plain()), "its bbox".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"covering": {"bbox": {"xmin": ["b", "xmin"]}}}))), Some(plain()),
                "its covering".to_owned()),
        ];
    for (data_type, given, want, note) in cases {
        let mut notes = Vec::new();
        let fields = fields(&[("g", data_type.clone())]);
        let found = of_file(&given.to_string(), &fields, &mut notes);
        let found = found.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        assert_eq!(found, want, "{data_type} {given}");
        assert!(
            notes.iter().any(|it| it.contains(&note)),
            "{given}: {notes:?}"
        );
    }
    let mut notes = Vec::new();
    assert_eq!(of_file("{", &fields(&[]), &mut notes), None);
    assert_eq!(notes, [whole("it is no JSON object")]);
}
