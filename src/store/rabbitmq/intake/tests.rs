use lapin::types::{AMQPValue, FieldTable, generation, parsing};
use proptest::prelude::*;

use super::payload::MAX_DEPTH;
use super::*;

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame.push(FRAME_END);
    frame
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

/// A content header with a table of headers and a message id.
fn content(table: &[u8], message_id: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    payload.extend(0x2080_u16.to_be_bytes());
    payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
    payload.extend(table);
    payload.extend(short(message_id));
    frame(HEADER, 1, &payload)
}

/// What is handed on of these bytes when they come in pieces of this size.
fn through(ledger: &Arc<Ledger>, bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut frames = Frames::new(ledger.clone());
    let mut out = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut piece = piece;
        while !piece.is_empty() {
            let room = frames.room();
            let count = room.len().min(piece.len());
            room[..count].copy_from_slice(&piece[..count]);
            frames.came(count)?;
            piece = &piece[count..];
            let mut target = [0; 100];
            loop {
                let count = frames.take(&mut target);
                if count == 0 {
                    break;
                }
                out.extend(&target[..count]);
            }
        }
    }
    Ok(out)
}

fn table_of(frame: &[u8]) -> FieldTable {
    let payload = &frame[FRAME_HEAD + 14..];
    parsing::parse_field_table(payload).unwrap().1
}

fn encoded(table: &FieldTable) -> Vec<u8> {
    let bytes: Vec<u8> = generation::gen_field_table(table)(Vec::new().into()).unwrap().into_inner().0;
    bytes[4..].to_vec()
}

#[test]
fn what_is_well_formed_passes_unchanged_in_pieces_of_any_size() {
    let mut inner = FieldTable::default();
    inner.insert("grün".into(), AMQPValue::LongString(vec![0xff, 0].into()));
    let mut table = FieldTable::default();
    table.insert("inner".into(), AMQPValue::FieldTable(inner));
    table.insert("number".into(), AMQPValue::LongInt(-1));
    let deliver = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b""), &short("grün".as_bytes())].concat();
    let bytes = [
        frame(METHOD, 1, &deliver),
        content(&encoded(&table), "ä".as_bytes()),
        frame(BODY, 1, &[0xff; 5000]),
        frame(HEARTBEAT, 0, &[]),
    ]
    .concat();
    for piece in [1, 2, 7, 100, 100_000] {
        assert_eq!(through(&Arc::default(), &bytes, piece).unwrap(), bytes, "{piece}");
    }
}

#[test]
fn what_is_no_text_becomes_question_marks() {
    let table = [&short(b"na\xffme")[..], b"V"].concat();
    let out = through(&Arc::default(), &content(&table, b"id \xc3\x28 \xe2\x82"), 10).unwrap();
    assert_eq!(table_of(&out).inner().keys().next().unwrap().as_str(), "na?me");
    assert!(out.windows(8).any(|window| window == b"id ?( ??" || window == b"id ?( ?\xce"), "{out:?}");
    let deliver = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"\xff"), &short(b"a\xff\xff")].concat();
    let out = through(&Arc::default(), &frame(METHOD, 1, &deliver), 1000).unwrap();
    assert!(out.ends_with(b"\x01?\x03a??\xce"), "{out:?}");
}

#[test]
fn what_is_nested_too_deeply_becomes_plain_bytes() {
    let mut nested = Vec::new();
    for level in 0..20_000 {
        let mut outer = short(b"");
        outer.push(if level % 2 == 0 { b'F' } else { b'A' });
        if level % 2 == 1 {
            nested = [&b"F"[..], &u32::try_from(nested.len()).unwrap().to_be_bytes(), &nested].concat();
        }
        outer.extend(u32::try_from(nested.len()).unwrap().to_be_bytes());
        outer.extend(&nested);
        nested = outer;
        if nested.len() > 120_000 {
            break;
        }
    }
    let out = through(&Arc::default(), &content(&nested, b"id"), 1000).unwrap();
    let mut table = table_of(&out);
    let mut depth = 0;
    loop {
        depth += 1;
        let Some(value) = table.inner().values().next().cloned() else { panic!("an end without bytes") };
        let value = match value {
            AMQPValue::FieldArray(array) => {
                depth += 1;
                array.as_slice()[0].clone()
            }
            value => value,
        };
        match value {
            AMQPValue::FieldTable(inner) => table = inner,
            AMQPValue::ByteArray(bytes) => {
                assert!(bytes.len() > 1000);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(depth <= MAX_DEPTH + 1, "{depth}");
}

#[test]
fn a_table_that_can_not_be_read_becomes_one_header_and_the_rest_stays() {
    let out = through(&Arc::default(), &content(b"\x01aZ whatever", b"id"), 1000).unwrap();
    assert_eq!(table_of(&out).inner().keys().next().unwrap().as_str(), "?");
    assert!(out.ends_with(b"\x02id\xce"), "{out:?}");
}

#[test]
fn what_breaks_the_protocol_is_an_error_at_once() {
    let tune = frame(METHOD, 0, &[0, 10, 0, 30, 0, 0, 0, 2, 0, 0, 0, 0]);
    let large = |kind: u8| [&[kind, 0, 1][..], &131_065_u32.to_be_bytes()].concat();
    let mut unended = frame(HEARTBEAT, 0, &[]);
    unended[7] = 0;
    let garbage = [tune.clone(), vec![b'H'; 100]].concat();
    for bytes in [garbage, [tune.clone(), large(BODY)].concat(), [tune, large(METHOD)].concat(), unended] {
        let error = through(&Arc::default(), &bytes, 3).unwrap_err();
        assert!(error.to_string().starts_with("the broker sent a frame"), "{error}");
    }
    for greeting in [&b"AMQP\0\x01\0\0"[..], b"HTTP/1.1 400 Bad Request", b"\x15\x03\x03\0\x02\x02\x28"] {
        assert_eq!(through(&Arc::default(), greeting, 3).unwrap(), greeting);
    }
}

#[test]
fn the_ledger_knows_what_was_returned_and_what_can_be_confirmed() {
    let ledger = Arc::<Ledger>::default();
    ledger.open(1);
    ledger.publishes(1);
    let back = [&[0, 60, 0, 50, 1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"key")].concat();
    let bytes = [frame(METHOD, 1, &back), content(b"", b"id-1")].concat();
    through(&ledger, &bytes, 5).unwrap();
    assert_eq!(ledger.returned(1), ["id-1"]);
    assert!(ledger.returned(1).is_empty() && ledger.returned(2).is_empty());
    // A delivery's properties are no return.
    through(&ledger, &content(b"", b"id-2"), 5).unwrap();
    assert!(ledger.returned(1).is_empty());
    for (method, tag, fine) in [(80, 1, true), (80, 0, false), (80, 2, false), (120, u64::MAX, false)] {
        let confirm = [&[0, 60, 0, method][..], &u64::to_be_bytes(tag), &[1]].concat();
        assert_eq!(through(&ledger, &frame(METHOD, 1, &confirm), 100).is_ok(), fine, "{method} {tag}");
        assert!(through(&ledger, &frame(METHOD, 2, &confirm), 100).is_ok(), "not a publishing channel");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_handed_on_has_its_length(
        payload in proptest::collection::vec(any::<u8>(), 0..300), kind in 1u8..4, piece in 1usize..40,
    ) {
        let bytes = frame(kind, 1, &payload);
        let ledger = Arc::<Ledger>::default();
        prop_assert_eq!(through(&ledger, &bytes, piece).unwrap().len(), bytes.len());
        let _ = through(&ledger, &payload, piece);
    }

    #[test]
    fn a_table_is_readable_afterwards_whatever_it_was(content_bytes in proptest::collection::vec(any::<u8>(), 7..200)) {
        let out = through(&Arc::default(), &content(&content_bytes, b"id"), 1000).unwrap();
        let read = parsing::parse_field_table(&out[FRAME_HEAD + 14..]);
        prop_assert!(read.is_ok(), "{:?}", read.err());
    }
}
