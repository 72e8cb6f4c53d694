use lapin::BasicProperties;
use lapin::protocol::basic::parse_properties;
use lapin::types::{AMQPValue, FieldTable, generation, parsing};
use proptest::prelude::*;

use super::arrivals::MOST_UNTAKEN;
use super::incoming::{BODY, FRAME_END, FRAME_HEAD, HEADER, METHOD};
use super::payload::MAX_DEPTH;
use super::*;
use crate::store::rabbitmq::wire::written;

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
    content_of(0, table, message_id)
}

/// The same, of a message whose body has this size.
fn content_of(size: u64, table: &[u8], message_id: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(size.to_be_bytes());
    payload.extend(0x2080_u16.to_be_bytes());
    payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
    payload.extend(table);
    payload.extend(short(message_id));
    frame(HEADER, 1, &payload)
}

fn deliver(tag: u64, exchange: &[u8], routing_key: &[u8]) -> Vec<u8> {
    let (consumer, tag) = (short(b"consumer"), tag.to_be_bytes());
    let method = [&[0, 60, 0, 60][..], &consumer, &tag, &[1], &short(exchange), &short(routing_key)].concat();
    frame(METHOD, 1, &method)
}

fn confirm(method: u8, tag: u64, multiple: u8) -> Vec<u8> {
    frame(METHOD, 1, &[&[0, 60, 0, method][..], &tag.to_be_bytes(), &[multiple]].concat())
}

/// What is the client library's of these bytes when they come in pieces of this size.
fn through(lanes: &Lanes, bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut frames = Frames::new();
    let mut theirs = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut piece = piece;
        while !piece.is_empty() {
            let room = frames.room();
            let count = room.len().min(piece.len());
            room[..count].copy_from_slice(&piece[..count]);
            frames.came(count, lanes, &mut theirs)?;
            piece = &piece[count..];
        }
    }
    Ok(theirs)
}

/// The same on channels that are all the client library's.
fn passed(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    through(&Lanes::default(), bytes, piece)
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
        assert_eq!(passed(&bytes, piece).unwrap(), bytes, "{piece}");
    }
}

#[test]
fn what_is_no_text_becomes_question_marks() {
    let table = [&short(b"na\xffme")[..], b"V"].concat();
    let out = passed(&content(&table, b"id \xc3\x28 \xe2\x82"), 10).unwrap();
    assert_eq!(table_of(&out).inner().keys().next().unwrap().as_str(), "na?me");
    assert!(out.windows(8).any(|window| window == b"id ?( ??" || window == b"id ?( ?\xce"), "{out:?}");
    let deliver = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"\xff"), &short(b"a\xff\xff")].concat();
    let out = passed(&frame(METHOD, 1, &deliver), 1000).unwrap();
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
    let out = passed(&content(&nested, b"id"), 1000).unwrap();
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
    let out = passed(&content(b"\x01aZ whatever", b"id"), 1000).unwrap();
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
        let error = passed(&bytes, 3).unwrap_err();
        assert!(error.to_string().starts_with("the broker sent a frame"), "{error}");
    }
    for greeting in [&b"AMQP\0\x01\0\0"[..], b"HTTP/1.1 400 Bad Request", b"\x15\x03\x03\0\x02\x02\x28"] {
        assert_eq!(passed(greeting, 3).unwrap(), greeting);
    }
}

#[test]
fn who_publishes_is_told_of_returns_and_confirms_in_their_order_and_the_client_library_is_not() {
    let lanes = Lanes::default();
    let mut said = lanes.publishing(1);
    *lanes.lock().published(1).unwrap() += 1;
    let back = [&[0, 60, 0, 50, 1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"key")].concat();
    let close = [&[0, 20, 0, 40, 1, 0x96][..], &short(b"PRECONDITION_FAILED"), &[0; 4]].concat();
    let bytes = [
        frame(METHOD, 1, &back),
        content_of(5, b"", b"id-1"),
        frame(BODY, 1, b"bo"),
        frame(BODY, 1, b"dy!"),
        confirm(80, 1, 0),
        frame(METHOD, 1, &close),
        // A channel that was closed is nobody's: what is said of it then is the client library's.
        confirm(80, 7, 0),
    ]
    .concat();
    let theirs = through(&lanes, &bytes, 5).unwrap();
    assert_eq!(theirs, [frame(METHOD, 1, &close), confirm(80, 7, 0)].concat());
    assert_eq!(said.try_recv().unwrap(), Said::Returned("id-1".to_owned()));
    assert_eq!(said.try_recv().unwrap(), Said::Confirmed { tag: 1, multiple: false, stored: true });
    let closed = Closed { code: 406, text: "PRECONDITION_FAILED".to_owned() };
    assert_eq!(said.try_recv().unwrap(), Said::Closed(closed));
    assert_eq!(said.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
}

#[test]
fn only_what_was_published_can_be_confirmed() {
    for (method, tag, fine) in [(80, 1, true), (80, 2, true), (80, 0, false), (80, 3, false), (120, u64::MAX, false)] {
        let lanes = Lanes::default();
        let _said = lanes.publishing(1);
        *lanes.lock().published(1).unwrap() += 2;
        assert_eq!(through(&lanes, &confirm(method, tag, 1), 100).is_ok(), fine, "{method} {tag}");
        assert_eq!(passed(&confirm(method, tag, 1), 100).unwrap(), confirm(method, tag, 1), "not a publishing channel");
    }
}

#[test]
fn who_consumes_gets_whole_messages_in_pieces_of_any_size() {
    let mut table = FieldTable::default();
    table.insert("number".into(), AMQPValue::LongInt(-1));
    let body = vec![0xCE; 5000];
    let bytes = [
        deliver(1, b"", "gr\u{fc}n".as_bytes()),
        content_of(5000, &encoded(&table), b"id"),
        frame(BODY, 1, &body[..3000]),
        frame(HEARTBEAT, 0, &[]),
        frame(BODY, 1, &body[3000..]),
        deliver(2, b"orders", b"key"),
        content(b"", b"empty"),
    ]
    .concat();
    for piece in [1, 2, 7, 100, 100_000] {
        let lanes = Lanes::default();
        let mut came = lanes.consuming(1);
        assert_eq!(through(&lanes, &bytes, piece).unwrap(), frame(HEARTBEAT, 0, &[]), "{piece}");
        let Came::Message(first) = came.now().unwrap() else { panic!("no message") };
        assert_eq!((first.tag, first.redelivered, first.exchange.as_str()), (1, true, ""));
        assert_eq!(first.routing_key, "gr\u{fc}n");
        assert_eq!(parse_properties(&first.properties[..]).unwrap().1.headers().as_ref(), Some(&table));
        assert_eq!(first.body, body, "{piece}");
        let Came::Message(second) = came.now().unwrap() else { panic!("no message") };
        assert_eq!((second.tag, second.exchange.as_str(), second.body.len()), (2, "orders", 0));
        let (_, properties) = parse_properties(&second.properties[..]).unwrap();
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "empty");
    }
}

#[test]
fn messages_that_break_the_protocol_end_the_connection() {
    let head = [deliver(1, b"", b""), content_of(5, b"", b"id")].concat();
    let whole = [&head[..], &frame(BODY, 1, b"12345")].concat();
    let broken = [
        ("longer", [&head[..], &frame(BODY, 1, b"123456")].concat()),
        ("shorter", [&head[..], &frame(BODY, 1, b"123"), &deliver(2, b"", b"")].concat()),
        ("twice", [&head[..], &content_of(5, b"", b"id")].concat()),
        ("no method", content_of(5, b"", b"id")),
        ("no header", [deliver(1, b"", b""), frame(BODY, 1, b"1")].concat()),
        ("after its end", [&whole[..], &frame(BODY, 1, b"1")].concat()),
        ("no end octet", [&head[..], &[BODY, 0, 1, 0, 0, 0, 1, b'1', 0]].concat()),
        ("cut short", frame(METHOD, 1, &[0, 60, 0, 60, 255])),
    ];
    for (what, bytes) in broken {
        for piece in [1, 1000] {
            let lanes = Lanes::default();
            let _came = lanes.consuming(1);
            assert!(through(&lanes, &bytes, piece).is_err(), "{what}");
        }
    }
    let lanes = Lanes::default();
    let _came = lanes.consuming(1);
    through(&lanes, &whole, 1000).unwrap();
}

#[test]
fn what_we_write_is_what_the_client_library_would_have_written() {
    let outgoing = Outgoing::new(4096);
    let mut table = FieldTable::default();
    table.insert("http-x".into(), AMQPValue::LongString("y".into()));
    let properties = BasicProperties::default().with_message_id("id".into()).with_headers(table.clone());
    let properties = written(&properties);
    for (size, frames) in [(0, 0), (1, 1), (4088, 1), (4089, 2), (20_000, 5)] {
        let body = bytes::Bytes::from(vec![b'x'; size]);
        let publication = Publication {
            exchange: &"orders".into(),
            routing_key: &"gr\u{fc}n".into(),
            properties: &properties,
            body: &body,
        };
        outgoing.fits(&properties).unwrap();
        outgoing.publish(1, publication);
        let mut pieces = VecDeque::new();
        outgoing.take(&mut pieces);
        let written: Vec<u8> = pieces.iter().flat_map(|piece| piece.as_ref().to_vec()).collect();
        let method = [&[0, 60, 0, 40, 0, 0][..], &short(b"orders"), &short("gr\u{fc}n".as_bytes()), &[1]].concat();
        let mut expected = [frame(METHOD, 1, &method), content_of(size as u64, &encoded(&table), b"id")].concat();
        for part in body.chunks(4088) {
            expected.extend(frame(BODY, 1, part));
        }
        assert!(written == expected, "{size}");
        assert_eq!(body.chunks(4088).len(), frames);
    }
    outgoing.ack(7, 3, true);
    outgoing.cancel(7, &"tag".into());
    let mut pieces = VecDeque::new();
    outgoing.take(&mut pieces);
    let cancel = [&[0, 60, 0, 30][..], &short(b"tag"), &[1]].concat();
    let expected =
        [frame(METHOD, 7, &[&[0, 60, 0, 80][..], &3_u64.to_be_bytes(), &[1]].concat()), frame(METHOD, 7, &cancel)]
            .concat();
    assert_eq!(pieces[0].as_ref(), expected);
}

#[test]
fn headers_beyond_a_frame_are_not_written() {
    let outgoing = Outgoing::new(4096);
    let mut table = FieldTable::default();
    table.insert("http-x".into(), AMQPValue::LongString("y".repeat(4096).into()));
    let error = outgoing.fits(&written(&BasicProperties::default().with_headers(table))).unwrap_err();
    assert!(error.to_string().contains("the broker takes at most 4088 in a frame"), "{error}");
}

#[tokio::test]
async fn nothing_is_written_on_a_channel_that_has_ended() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (line, mut pipe, mut broker) = line();
    let (mut said, mut came) = (line.publishing(1), line.consuming(2));
    let publication = || Publication {
        exchange: Box::leak(Box::new("".into())),
        routing_key: Box::leak(Box::new("q".into())),
        properties: &[0, 0],
        body: Box::leak(Box::default()),
    };
    assert!(line.ack(2, 1, false) && line.publish(1, publication()) == Ok(1));
    let close = |channel| frame(METHOD, channel, &[&[0, 20, 0, 40, 1, 0x96][..], &short(b"over"), &[0; 4]].concat());
    broker.write_all(&[close(1), close(2)].concat()).await.unwrap();
    assert!(matches!(said.recv().await, Some(Said::Closed(_))) && matches!(came.next().await, Some(Came::Closed(_))));
    assert_eq!(line.publish(1, publication()), Err(Unsent::Ended));
    assert!(!line.ack(2, 2, false));
    line.cancel(2, &"tag".into());
    // What the client library answers comes right behind what was written before.
    let close_ok = frame(METHOD, 1, &[0, 20, 0, 41]);
    futures_util::AsyncWriteExt::write_all(&mut pipe, &close_ok).await.unwrap();
    let mut written = vec![0; 21 + 18 + 22 + 12];
    broker.read_exact(&mut written).await.unwrap();
    assert!(written.ends_with(&close_ok), "{written:?}");
}

/// A client library that is always a little behind.
#[tokio::test]
async fn what_the_client_library_has_read_is_not_kept() {
    use tokio::io::AsyncWriteExt as _;
    let (socket, mut broker) = tokio::io::duplex(1 << 20);
    let (ours, mut theirs) = tokio::io::duplex(PIPE);
    let (line, _pipe) = Line::start(tokio::io::duplex(1).0, 4096, CancellationToken::new());
    let mut driver = Driver::new(socket, ours, line, CancellationToken::new());
    let body = frame(BODY, 9, &[0; 4000]);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut read = vec![0; 60 << 10];
    let behind = async {
        for _ in 0..200 {
            for _ in 0..16 {
                broker.write_all(&body).await.unwrap();
            }
            let _ = Pin::new(&mut driver).poll(&mut context);
            tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut read).await.unwrap();
        }
    };
    // Only what is done here moves the driver on.
    tokio::task::unconstrained(behind).await;
    assert!(driver.theirs.len() <= 2 * BACKLOG, "{}", driver.theirs.len());
}

#[test]
fn what_the_client_library_says_is_taken_frame_by_frame() {
    let tune_ok = frame(METHOD, 0, &[0, 10, 0, 31, 0, 0, 0, 1, 0x10, 0, 0, 10]);
    let bytes = [b"AMQP\0\0\x09\x01".to_vec(), tune_ok, frame(BODY, 1, b"AMQP")].concat();
    let mut spoken = pipe::Spoken::default();
    let (mut taken, agreed) = (Vec::new(), std::cell::Cell::new(0));
    for (number, byte) in bytes.iter().enumerate() {
        spoken.room()[0] = *byte;
        spoken.came(1);
        let frames = spoken.take_frames(|max_frame| agreed.set(max_frame));
        taken.extend(frames);
        let ends = [8, 8 + 20, bytes.len()];
        assert_eq!(taken.len(), ends.into_iter().filter(|end| *end <= number + 1).max().unwrap_or(0));
    }
    assert_eq!((taken, agreed.get()), (bytes, 0x11000));
}

/// The client library's end of a line, and the broker's.
fn line() -> (Arc<Line>, Pipe, tokio::io::DuplexStream) {
    let (socket, broker) = tokio::io::duplex(1 << 20);
    let (line, pipe) = Line::start(socket, 4096, CancellationToken::new());
    (line, pipe, broker)
}

/// A message of a MiB.
fn large(tag: u64) -> Vec<u8> {
    let parts = (0..1 << 8).flat_map(|_| frame(BODY, 1, &[b'x'; 1 << 12]));
    [deliver(tag, b"", b""), content_of(1 << 20, &[], b"id")].concat().into_iter().chain(parts).collect()
}

#[tokio::test]
async fn no_more_is_read_than_somebody_takes() {
    use tokio::io::AsyncWriteExt as _;
    let (line, _pipe, mut broker) = line();
    let mut came = line.consuming(1);
    line.limit(1);
    let sending = tokio::spawn(async move {
        for tag in 1..=60 {
            broker.write_all(&large(tag)).await.unwrap();
        }
        let close = [&[0, 20, 0, 40, 1, 0x96][..], &short(b"over"), &[0; 4]].concat();
        broker.write_all(&frame(METHOD, 1, &close)).await.unwrap();
        broker
    });
    let lies = || line.lanes.untaken.bytes();
    while lies() < MOST_UNTAKEN {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lies() < MOST_UNTAKEN + (2 << 20), "{}", lies());
    for expected in 1..=30 {
        let Some(Came::Message(message)) = came.next().await else { panic!("no message") };
        assert_eq!(message.tag, expected);
    }
    // Nobody takes any more, and what is behind the messages comes all the same.
    assert!(!came.threw());
    line.discard(1, &mut came);
    assert!(matches!(came.next().await, Some(Came::Closed(_))));
    assert!(came.threw());
    assert_eq!(lies(), 0);
    sending.await.unwrap();
}

#[test]
fn while_it_is_looked_around_as_much_is_kept_as_there_is_room_for_and_then_nothing() {
    for (size, kept) in [(1 << 20, 16), (20 << 20, 1)] {
        let lanes = Lanes::default();
        let mut came = lanes.consuming(1);
        let parts = size >> 12;
        for tag in 1..=20 {
            through(&lanes, &[deliver(tag, b"", b""), content_of(size, &[], b"id")].concat(), 4096).unwrap();
            let part = frame(BODY, 1, &[b'x'; 1 << 12]);
            for _ in 0..parts {
                through(&lanes, &part, 4200).unwrap();
            }
        }
        let tags: Vec<u64> = std::iter::from_fn(|| came.now())
            .map(|came| if let Came::Message(message) = came { message.tag } else { 0 })
            .collect();
        // Their properties count as well.
        assert!((kept - 1..=kept).contains(&tags.len()) && !tags.is_empty(), "{tags:?}");
        assert!(tags.iter().copied().eq(1..=tags.len() as u64), "nothing is missing in between: {tags:?}");
        assert!(came.threw() && !lanes.limit(1));
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_holds_nobody_up() {
    use tokio::io::AsyncWriteExt as _;
    let (line, _pipe, mut broker) = line();
    let came = line.consuming(1);
    line.limit(1);
    let sending = tokio::spawn(async move {
        for tag in 1..=40 {
            broker.write_all(&large(tag)).await.unwrap();
        }
        broker
    });
    while line.lanes.untaken.bytes() < MOST_UNTAKEN {
        tokio::task::yield_now().await;
    }
    drop(came);
    sending.await.unwrap();
    assert_eq!(line.lanes.untaken.bytes(), 0);
}

#[tokio::test]
async fn what_was_said_before_the_client_library_wrote_goes_out_before_it() {
    use tokio::io::AsyncReadExt as _;
    let (line, mut pipe, mut broker) = line();
    let _came = line.consuming(1);
    for round in 1..200_u64 {
        line.ack(1, round, false);
        let close = frame(METHOD, 1, &[0, 20, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
        futures_util::AsyncWriteExt::write_all(&mut pipe, &close).await.unwrap();
        let expected = [confirm(80, round, 0), close].concat();
        let mut written = vec![0; expected.len()];
        broker.read_exact(&mut written).await.unwrap();
        assert_eq!(written, expected, "{round}");
    }
}

#[tokio::test]
async fn the_end_of_a_line_reaches_all_who_wait() {
    use tokio::io::AsyncWriteExt as _;
    let (line, mut pipe, mut broker) = line();
    let (mut said, mut came) = (line.publishing(1), line.consuming(2));
    broker.write_all(b"\x01\0\0\0\0\0\x04\0\x0a\0\x0b\xceGARBAGE").await.unwrap();
    let mut passed = Vec::new();
    let error = futures_util::AsyncReadExt::read_to_end(&mut pipe, &mut passed).await.unwrap_err();
    assert_eq!(error.to_string(), "the broker sent a frame of the unknown kind 71");
    assert!(said.recv().await.is_none() && came.next().await.is_none());
    line.ended().await;
    assert!(line.publishing(3).recv().await.is_none(), "nor is anybody told who comes later");
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_handed_on_has_its_length(
        payload in proptest::collection::vec(any::<u8>(), 0..300), kind in 1u8..4, piece in 1usize..40,
    ) {
        let bytes = frame(kind, 1, &payload);
        prop_assert_eq!(passed(&bytes, piece).unwrap().len(), bytes.len());
        let _ = passed(&payload, piece);
    }

    #[test]
    fn no_frames_panic_on_channels_of_ours(
        frames in proptest::collection::vec((1u8..4, proptest::collection::vec(any::<u8>(), 0..40)), 1..6),
        start in 0usize..4, piece in 1usize..40,
    ) {
        let starts: [&[u8]; 4] = [b"", b"\0\x3c\0\x3c", b"\0\x3c\0\x32", b"\0\x3c\0\x50"];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, 1, &[starts[start], payload].concat())).collect();
        for publishes in [true, false] {
            let lanes = Lanes::default();
            let watchers = if publishes { (Some(lanes.publishing(1)), None) } else { (None, Some(lanes.consuming(1))) };
            let _ = through(&lanes, &bytes, piece);
            drop(watchers);
        }
    }

    #[test]
    fn a_table_is_readable_afterwards_whatever_it_was(content_bytes in proptest::collection::vec(any::<u8>(), 7..200)) {
        let out = passed(&content(&content_bytes, b"id"), 1000).unwrap();
        let read = parsing::parse_field_table(&out[FRAME_HEAD + 14..]);
        prop_assert!(read.is_ok(), "{:?}", read.err());
    }
}
