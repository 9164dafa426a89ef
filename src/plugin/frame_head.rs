//! Finds the largest column of a bridge frame from the beginning of the frame. It is used for the error
//! message about a frame that is refused because of its size, since only the beginning of such a frame is
//! read.

#![cfg_attr(
    not(test),
    deny(clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::ipc;
use byteorder::{ByteOrder, LittleEndian};

/// Bytes that are read of a refused frame. They contain its schema and the layout of its first batch.
pub(super) const SIZE: usize = 1 << 20;

/// The largest column of the first message that exceeds `head`, and its size in bytes. The message is a
/// record batch or a dictionary.
pub(super) fn largest_column(head: &[u8]) -> Option<(String, u64)> {
    // The bytes come from a plugin, so decoding may panic.
    catch_unwind(AssertUnwindSafe(|| largest(head))).ok()?
}

fn largest(head: &[u8]) -> Option<(String, u64)> {
    let mut rest = head;
    let mut schema = None;
    loop {
        let mut size = take_size(&mut rest)?;
        if size == u32::MAX {
            size = take_size(&mut rest)?;
        }
        let (bytes, behind) = rest.split_at_checked(size as usize)?;
        let message = ipc::root_as_message(bytes).ok()?;
        if let Some(found) = message.header_as_schema() {
            schema = Some(found);
        }
        let body = usize::try_from(message.bodyLength()).ok()?;
        match behind.get(body..) {
            Some(next) => rest = next,
            None => return of_message(&schema?, &message),
        }
    }
}

/// Removes the next four bytes, the size of a message of an Arrow stream.
pub(super) fn take_size(rest: &mut &[u8]) -> Option<u32> {
    let (size, behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    Some(LittleEndian::read_u32(size))
}

fn of_message(schema: &ipc::Schema<'_>, message: &ipc::Message<'_>) -> Option<(String, u64)> {
    let fields = || schema.fields().into_iter().flatten();
    let named = |field: ipc::Field<'_>| field.name().unwrap_or_default().to_owned();
    if let Some(dictionary) = message.header_as_dictionary_batch() {
        let has = |field: &ipc::Field<'_>| has_dictionary(field, dictionary.id());
        let size = u64::try_from(message.bodyLength()).ok()?;
        return fields().find(has).map(|field| (named(field), size));
    }
    let batch = message.header_as_record_batch()?;
    let mut buffers = batch.buffers().into_iter().flatten();
    let mut views = batch.variadicBufferCounts().into_iter().flatten();
    let mut largest: Option<(String, u64)> = None;
    for field in fields() {
        let count = buffers_of(&field, &mut views)?;
        let sizes = buffers.by_ref().take(count).map(|buffer| buffer.length());
        let size = sizes.fold(0u64, |sum, size| {
            sum.saturating_add(u64::try_from(size).unwrap_or(0))
        });
        if largest.as_ref().is_none_or(|(_, most)| size > *most) {
            largest = Some((named(field), size));
        }
    }
    largest
}

/// True if a field, or a field nested in it, has the dictionary with that ID.
fn has_dictionary(field: &ipc::Field<'_>, id: i64) -> bool {
    let mut children = field.children().into_iter().flatten();
    let own = field.dictionary().is_some_and(|found| found.id() == id);
    own || children.any(|child| has_dictionary(&child, id))
}

/// Number of buffers of a field, including its nested fields, in the layout of the Arrow format.
fn buffers_of(field: &ipc::Field<'_>, views: &mut impl Iterator<Item = i64>) -> Option<usize> {
    if field.dictionary().is_some() {
        return Some(2);
    }
    let own = match field.type_type() {
        ipc::Type::Null | ipc::Type::RunEndEncoded => 0,
        ipc::Type::Struct_ | ipc::Type::FixedSizeList => 1,
        ipc::Type::Utf8
        | ipc::Type::LargeUtf8
        | ipc::Type::Binary
        | ipc::Type::LargeBinary
        | ipc::Type::ListView
        | ipc::Type::LargeListView => 3,
        ipc::Type::Utf8View | ipc::Type::BinaryView => {
            2usize.checked_add(usize::try_from(views.next()?).ok()?)?
        }
        ipc::Type::Union => {
            let is_dense = field.type_as_union()?.mode() == ipc::UnionMode::Dense;
            1 + usize::from(is_dense)
        }
        _ => 2,
    };
    let mut count = own;
    for child in field.children().into_iter().flatten() {
        count = count.checked_add(buffers_of(&child, views)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::datatypes::Int8Type;
    use arrow::ipc::writer::StreamWriter;

    use super::*;

    fn frame(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut frame = Vec::new();
        let mut writer = StreamWriter::try_new(&mut frame, &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        frame
    }

    /// One large column of each layout, at each position among small columns.
    #[test]
    fn the_largest_column_of_a_frame_is_known_by_its_beginning() {
        let text = "x".repeat(100_000);
        let item = |array: &ArrayRef| {
            Arc::new(arrow::datatypes::Field::new(
                "i",
                array.data_type().clone(),
                true,
            ))
        };
        let ints: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let offsets = || arrow::buffer::OffsetBuffer::from_lengths([1]);
        let small: Vec<(&str, ArrayRef)> = vec![
            ("null", Arc::new(NullArray::new(1))),
            ("bool", Arc::new(BooleanArray::from(vec![true]))),
            (
                "view",
                Arc::new(StringViewArray::from(vec!["a text that is not inlined"])),
            ),
            (
                "list",
                Arc::new(ListArray::new(item(&ints), offsets(), ints.clone(), None)),
            ),
            (
                "fixed",
                Arc::new(FixedSizeListArray::new(item(&ints), 1, ints.clone(), None)),
            ),
            (
                "struct",
                Arc::new(StructArray::from(vec![(item(&ints), ints.clone())])),
            ),
            (
                "runs",
                Arc::new(RunArray::try_new(&Int32Array::from(vec![1]), &ints).unwrap()),
            ),
            (
                "key",
                Arc::new(vec!["a"].into_iter().collect::<DictionaryArray<Int8Type>>()),
            ),
            ("int", ints.clone()),
        ];
        let string: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
        let large: Vec<ArrayRef> = vec![
            string.clone(),
            Arc::new(BinaryViewArray::from(vec![text.as_bytes()])),
            Arc::new(ListArray::new(
                item(&string),
                offsets(),
                string.clone(),
                None,
            )),
            Arc::new(StructArray::from(vec![(item(&string), string.clone())])),
            Arc::new(
                vec![text.as_str()]
                    .into_iter()
                    .collect::<DictionaryArray<Int8Type>>(),
            ),
        ];
        for column in large {
            for index in 0..=small.len() {
                let mut columns = small.clone();
                columns.insert(index, ("large", column.clone()));
                let names: Vec<String> =
                    columns.iter().map(|(name, _)| (*name).to_owned()).collect();
                let frame = frame(columns);
                let head = &frame[..frame.len().min(20_000)];
                let (name, size) = largest_column(head).unwrap();
                assert_eq!(name, "large", "{} at {index}", column.data_type());
                assert!((100_000..200_000).contains(&size), "{size}");
                for cut in (0..head.len()).step_by(41) {
                    // `largest` without its guard: it does not panic.
                    if let Some((name, size)) = largest(&head[..cut]) {
                        assert!(names.contains(&name), "{name} at {cut}");
                        assert!(size <= frame.len() as u64, "{size} at {cut}");
                    }
                    let mut other = head.to_vec();
                    other[cut] ^= 0x41;
                    if let Some((name, _)) = largest(&other) {
                        assert!(name.len() < head.len());
                    }
                }
            }
        }
        assert!(largest_column(&[]).is_none());
    }
}
