//! Checks geometries in well-known binary (WKB), as OGC 06-103r4 and PostGIS (EWKB) define it. The rules are those
//! of DuckDB, which reads no row of a file with a value that breaks one.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, FieldRef};

/// Levels of geometries within each other that DuckDB reads.
const DEPTH_MAX: usize = 16;
const POINT: u32 = 1;
const LINE: u32 = 2;
const POLYGON: u32 = 3;
/// The types of several points, lines and polygons are this much higher.
const MULTI: u32 = 3;
const COLLECTION: u32 = 7;
/// Flags of EWKB.
const HAS_Z: u32 = 1 << 31;
const HAS_M: u32 = 1 << 30;
const HAS_SRID: u32 = 1 << 29;

/// For columns of bytes that have a value which is no WKB: the first such value's fault.
#[derive(Default)]
pub(super) struct Faults(BTreeMap<String, String>);

impl Faults {
    /// Adds the faults of a batch's columns. Checks no column further that has one.
    pub(super) fn add(&mut self, fields: &[FieldRef], columns: &[ArrayRef]) {
        for (field, column) in fields.iter().zip(columns) {
            if self.0.contains_key(field.name()) {
                continue;
            }
            let found = match field.data_type() {
                DataType::Binary => first_fault(column.as_binary::<i32>().iter()),
                DataType::LargeBinary => first_fault(column.as_binary::<i64>().iter()),
                _ => None,
            };
            if let Some(fault) = found {
                self.0.insert(field.name().clone(), fault);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn of(&self, column: &str) -> Option<&str> {
        self.0.get(column).map(String::as_str)
    }
}

fn first_fault<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> Option<String> {
    let mut faults = values.flatten().filter_map(|value| check(value).err());
    faults.next()
}

/// A geometry whose parts follow.
struct Outer {
    kind: u32,
    parts: u32,
}

/// Which dimensions coordinates have besides x and y.
#[derive(Clone, Copy, PartialEq)]
struct Dimensions {
    z: bool,
    m: bool,
}

/// The error is what is wrong with the value.
fn check(value: &[u8]) -> Result<(), String> {
    let mut rest = Rest { value, at: 0 };
    let mut outer: Vec<Outer> = Vec::new();
    let mut dimensions = None;
    loop {
        let start = rest.at;
        if outer.len() >= DEPTH_MAX {
            return Err(format!("it has more than {DEPTH_MAX} levels of geometries"));
        }
        let (is_little, kind, found) = rest.header()?;
        if *dimensions.get_or_insert(found) != found {
            return Err(format!(
                "the geometry at byte {start} has other dimensions (z, m) than those around it"
            ));
        }
        let around = outer.last().map_or(COLLECTION, |outer| outer.kind);
        if around != COLLECTION && around != kind + MULTI {
            return Err(format!(
                "the geometry at byte {start} is of type {kind}, and the one around it of type {around}"
            ));
        }
        let point = 8 * (2 + u64::from(found.z) + u64::from(found.m));
        match kind {
            POINT => rest.skip(point)?,
            LINE => rest.points(is_little, point)?,
            POLYGON => {
                for _ in 0..rest.integer(is_little)? {
                    rest.points(is_little, point)?;
                }
            }
            _ => {
                let parts = rest.integer(is_little)?;
                outer.push(Outer { kind, parts });
            }
        }
        while outer.pop_if(|outer| outer.parts == 0).is_some() {}
        match outer.last_mut() {
            Some(outer) => outer.parts -= 1,
            None => return rest.end(),
        }
    }
}

/// What follows of a value.
struct Rest<'a> {
    value: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    /// Byte order, type and dimensions of a geometry.
    fn header(&mut self) -> Result<(bool, u32, Dimensions), String> {
        let start = self.at;
        let order = self.value.get(start).copied();
        self.skip(1)?;
        let is_little = order == Some(1);
        let code = self.integer(is_little)?;
        let has = |flag: u32| code & flag != 0;
        // ISO's types are 1000 higher with z, 2000 with m and 3000 with both.
        let plain = code & !(HAS_Z | HAS_M | HAS_SRID);
        let (kind, group) = (plain % 1000, plain / 1000);
        let is_known = order <= Some(1) && (POINT..=COLLECTION).contains(&kind) && group <= 3;
        if !is_known {
            return Err(format!(
                "there is no geometry of type 1 to 7 at byte {start}"
            ));
        }
        if has(HAS_SRID) {
            self.skip(4)?;
        }
        let dimensions = Dimensions {
            z: has(HAS_Z) || group & 1 == 1,
            m: has(HAS_M) || group & 2 == 2,
        };
        Ok((is_little, kind, dimensions))
    }

    /// Skips a number of points and these points.
    fn points(&mut self, is_little: bool, point: u64) -> Result<(), String> {
        let points = self.integer(is_little)?;
        self.skip(u64::from(points) * point)
    }

    fn integer(&mut self, is_little: bool) -> Result<u32, String> {
        let start = self.at;
        self.skip(4)?;
        let bytes = self.value.get(start..).and_then(|rest| rest.first_chunk());
        Ok(match is_little {
            true => bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes)),
            false => bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes)),
        })
    }

    fn skip(&mut self, size: u64) -> Result<(), String> {
        let left = self.value.len() - self.at;
        match usize::try_from(size) {
            Ok(size) if size <= left => self.at += size,
            _ => {
                return Err(format!(
                    "it ends too early, after {} bytes",
                    self.value.len()
                ));
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), String> {
        match self.value.len() - self.at {
            0 => Ok(()),
            more => Err(format!("{more} bytes follow its geometry")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header in little-endian order, and 32-bit integers after it.
    fn wkb(code: u32, more: &[u32]) -> Vec<u8> {
        let words = [code].into_iter().chain(more.iter().copied());
        [1].into_iter()
            .chain(words.flat_map(u32::to_le_bytes))
            .collect()
    }

    fn with(mut value: Vec<u8>, more: &[u8]) -> Vec<u8> {
        value.extend_from_slice(more);
        value
    }

    fn nested(levels: usize, inner: &[u8]) -> Vec<u8> {
        with(wkb(COLLECTION, &[1]).repeat(levels), inner)
    }

    /// Each result is what DuckDB 2.0.0 does with a GeoParquet file with that value, except that it accepts
    /// unknown flags and byte orders.
    #[test]
    fn values_that_readers_do_not_open_have_a_fault() {
        let point = with(wkb(POINT, &[]), &[0; 16]);
        let point_z = with(wkb(1001, &[]), &[0; 24]);
        let big = with(vec![0, 0, 0, 0, 1], &[0; 16]);
        for (value, fault) in [
            (point.clone(), ""),
            (big.clone(), ""),
            (point_z.clone(), ""),
            (with(wkb(HAS_Z | POINT, &[]), &[0; 24]), ""),
            (with(wkb(HAS_Z | HAS_M | POINT, &[]), &[0; 32]), ""),
            (with(wkb(HAS_Z | 2001, &[]), &[0; 32]), ""),
            (with(wkb(3001, &[]), &[0; 32]), ""),
            (with(wkb(HAS_SRID | POINT, &[4326]), &[0; 16]), ""),
            (wkb(LINE, &[0]), ""),
            (with(wkb(LINE, &[2]), &[0; 32]), ""),
            (with(wkb(POLYGON, &[2, 1]), &[0; 20]), ""),
            (with(wkb(4, &[2]), &[&point[..], &big].concat()), ""),
            (with(wkb(5, &[1]), &wkb(LINE, &[0])), ""),
            (with(wkb(6, &[1]), &wkb(POLYGON, &[0])), ""),
            (with(wkb(1007, &[1]), &point_z), ""),
            (wkb(COLLECTION, &[0]), ""),
            (nested(15, &point), ""),
            (nested(15, &wkb(COLLECTION, &[0])), ""),
            (vec![], "it ends too early, after 0 bytes"),
            (
                b"hello".to_vec(),
                "there is no geometry of type 1 to 7 at byte 0",
            ),
            (point[..20].to_vec(), "it ends too early, after 20 bytes"),
            (with(point.clone(), b"x"), "1 bytes follow its geometry"),
            (wkb(LINE, &[u32::MAX]), "it ends too early"),
            (wkb(POLYGON, &[u32::MAX]), "it ends too early"),
            (wkb(COLLECTION, &[u32::MAX]), "it ends too early"),
            (wkb(0, &[]), "no geometry of type"),
            (wkb(8, &[0]), "no geometry of type"),
            (wkb(4001, &[]), "no geometry of type"),
            (with(vec![2], &point[1..]), "no geometry of type"),
            (
                with(wkb(4, &[1]), &wkb(LINE, &[0])),
                "the geometry at byte 9 is of type 2, and the one around it of type 4",
            ),
            (
                with(wkb(4, &[1]), &point_z),
                "at byte 9 has other dimensions",
            ),
            (
                with(wkb(1007, &[1]), &wkb(COLLECTION, &[0])),
                "other dimensions",
            ),
            (nested(16, &point), "more than 16 levels"),
            (nested(100_000, &point), "more than 16 levels"),
        ] {
            let found = check(&value).err().unwrap_or_default();
            let is_right = match fault {
                "" => found.is_empty(),
                fault => found.contains(fault),
            };
            assert!(is_right, "{value:?}: {found:?}");
        }
    }
}
