//! A command's body: the decoder must agree with the grammar of the RFC and return the same
//! properties.

use casparian::zmtp::{Command, Metadata};

use crate::wire::properties;

pub fn run(data: &[u8]) {
    let decoded = Command::decode(data);
    let name = data
        .split_first()
        .filter(|(size, rest)| **size > 0 && rest.len() >= usize::from(**size))
        .map(|(size, rest)| rest.split_at(usize::from(*size)));
    let Some((name, rest)) = name else {
        assert!(decoded.is_err());
        return;
    };
    match name {
        b"READY" => match (decoded, properties(rest)) {
            (Ok(Command::Ready(metadata)), Some(expected)) => {
                assert_eq!(metadata.iter().collect::<Vec<_>>(), expected);
                for (name, _) in &expected {
                    let Ok(name) = std::str::from_utf8(name) else {
                        continue;
                    };
                    let first = expected
                        .iter()
                        .find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
                    assert_eq!(metadata.get(name), first.map(|(_, value)| *value));
                    assert_eq!(metadata.get(&name.to_ascii_uppercase()), metadata.get(name));
                }
            }
            (Err(_), None) => {}
            (decoded, expected) => panic!("{decoded:?}, expected {expected:?}"),
        },
        b"ERROR" => {
            let expected = rest
                .split_first()
                .filter(|(size, text)| text.len() == usize::from(**size))
                .map(|(_, text)| text);
            match decoded {
                Ok(Command::Error(reason)) => assert_eq!(Some(reason), expected),
                Err(_) => assert!(expected.is_none()),
                other => panic!("{other:?}"),
            }
        }
        b"PING" => match decoded {
            Ok(Command::Ping {
                ttl_deciseconds,
                context,
            }) => {
                assert_eq!(ttl_deciseconds.to_be_bytes(), rest[..2]);
                assert_eq!(context, &rest[2..rest.len().min(18)]);
            }
            Err(_) => assert!(rest.len() < 2),
            other => panic!("{other:?}"),
        },
        b"PONG" => assert!(matches!(decoded, Ok(Command::Pong))),
        name => assert_eq!(decoded, Ok(Command::Unknown(name))),
    }
    assert_eq!(Metadata::decode(rest).is_ok(), properties(rest).is_some());
}
