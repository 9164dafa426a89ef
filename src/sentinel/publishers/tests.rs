use super::*;

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// RFC 8032, 7.1: secret key, public key, message, signature.
const RFC_8032: [[&str; 4]; 4] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
    [
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ],
];

fn publisher(byte: u8, name: &str) -> Publisher {
    Publisher::new(&[byte; 32], name).unwrap()
}

fn trust(list: &str, allow_unsigned: bool) -> Trust {
    Trust {
        publishers: Some(Arc::new(Publishers::parse(list).unwrap())),
        allow_unsigned,
    }
}

#[test]
fn the_vectors_of_rfc_8032_hold() {
    for [secret, public, message, signature] in RFC_8032 {
        let secret: [u8; 32] = unhex(secret).try_into().unwrap();
        let signer = Publisher::new(&secret, "rfc").unwrap();
        assert_eq!(signer.public_line(), format!("{public} rfc"));
        let message = unhex(message);
        assert_eq!(text::hex(&signer.key.sign(&message).to_bytes()), signature);
        let key = public_key(public).unwrap();
        let signature = Signature::from_bytes(&decode(signature).unwrap());
        key.verify_strict(&message, &signature).unwrap();
        assert!(key.verify_strict(b"another", &signature).is_err());
    }
}

#[test]
fn only_the_named_publishers_signature_over_that_hash_counts() {
    let (ana, bob, second) = (
        publisher(1, "ana"),
        publisher(2, "bob"),
        publisher(3, "ana"),
    );
    let list = [&ana, &bob, &second].map(Publisher::public_line).join("\n");
    let trust = trust(&list, false);
    let hash = [7; 32];
    let hash_text = text::hex(&hash);
    let good = ana.sign(&hash_text).unwrap();
    assert_eq!(trust.check("ana", &hash, &good), Ok(Some(good.clone())));
    let other_key = second.sign(&hash_text).unwrap();
    assert!(
        trust.check("ana", &hash, &other_key).is_ok(),
        "each of her keys"
    );
    // Other spellings of the same bytes.
    let bytes: [u8; 64] = decode(&good).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
    for text in [good.to_uppercase(), base64.clone(), base64.replace('=', "")] {
        assert_eq!(trust.check("ana", &hash, &text), Ok(Some(good.clone())));
    }
    // S + L is the same number as S modulo L, the order of the group.
    let order = unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut malleable = bytes;
    let mut carry = 0;
    for (byte, more) in malleable[32..].iter_mut().zip(&order) {
        let sum = u16::from(*byte) + u16::from(*more) + carry;
        (*byte, carry) = ((sum & 255) as u8, sum >> 8);
    }
    let mut small_order = bytes;
    small_order[..32].copy_from_slice(&[0; 32]);
    small_order[0] = 1;
    let of_another = bob.sign(&hash_text).unwrap();
    let of_another_hash = ana.sign(&text::hex(&[8; 32])).unwrap();
    let mut flipped = bytes;
    flipped[63] ^= 1;
    for (what, name, signature) in [
        ("missing", "ana", ""),
        ("another's", "ana", of_another.as_str()),
        ("under another's name", "bob", good.as_str()),
        ("the name of no publisher", "eve", good.as_str()),
        ("the name in another spelling", "Ana", good.as_str()),
        ("over another hash", "ana", of_another_hash.as_str()),
        ("truncated", "ana", &good[..126]),
        ("too long", "ana", &format!("{good}00")),
        ("not a text of bytes", "ana", &"g".repeat(128)),
        (
            "Base64 with a bit too many",
            "ana",
            &format!("{}h==", &base64[..85]),
        ),
        ("malleable", "ana", &text::hex(&malleable)),
        ("of small order", "ana", &text::hex(&small_order)),
        ("zero", "ana", &"0".repeat(128)),
        ("flipped", "ana", &text::hex(&flipped)),
    ] {
        assert!(trust.check(name, &hash, signature).is_err(), "{what}");
    }
}

#[test]
fn what_is_unsigned_is_taken_only_when_allowed_and_never_in_a_listed_name() {
    let ana = publisher(1, "ana");
    let signed = ana.sign(&text::hex(&[7; 32])).unwrap();
    let none_trusted = Trust::default();
    assert!(!none_trusted.takes_any());
    assert!(none_trusted.check("ana", &[7; 32], &signed).is_err());
    let any = Trust {
        publishers: None,
        allow_unsigned: true,
    };
    // A signature that was not verified is not recorded.
    assert_eq!(any.check("ana", &[7; 32], &signed), Ok(None));
    let both = trust(&ana.public_line(), true);
    assert_eq!(both.check("bob", &[7; 32], ""), Ok(None));
    assert!(both.check("ana", &[7; 32], "").is_err());
    assert!(both.check("ana", &[8; 32], &signed).is_err());
    assert_eq!(both.check("ana", &[7; 32], &signed), Ok(Some(signed)));
}

#[test]
fn lists_have_a_key_and_a_name_a_line_and_no_unusable_keys() {
    let (one, two) = (publisher(1, "ana"), publisher(2, "Bob B."));
    let text = format!(
        "# who\n\n{}\n  {}  \n",
        one.public_line(),
        two.public_line()
    );
    assert_eq!(Publishers::parse(&text).unwrap().len(), 2);
    let base64 = base64::engine::general_purpose::STANDARD.encode(one.key.verifying_key());
    let same = Publishers::parse(&format!("{base64} ana")).unwrap();
    assert_eq!(same, Publishers::parse(&one.public_line()).unwrap());
    assert!(Publishers::parse("").unwrap().is_empty());
    let identity = format!("01{} ana", "00".repeat(31));
    // y = 1 as p + 1.
    let unusual = format!("ee{}7f ana", "ff".repeat(30));
    let many: Vec<String> = (1..=17)
        .map(|byte| publisher(byte, "ana").public_line())
        .collect();
    for (text, want) in [
        ("ana", "line 1: a publisher's key is 64"),
        (&one.public_line()[..64], "name"),
        (
            &format!("# a\n{}\n{}", one.public_line(), one.public_line()),
            "line 3: the key",
        ),
        (&identity, "order is small"),
        (&unusual, "order is small"),
        (&format!("02{} x", "00".repeat(31)), "no Ed25519 public key"),
        (&many.join("\n"), "more than 16 keys"),
    ] {
        let error = Publishers::parse(text).unwrap_err();
        assert!(error.to_string().contains(want), "{text}: {error}");
    }
}

#[test]
fn key_files_are_private_and_are_taken_for_what_they_are() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ana.key");
    let line = write_publisher(&path, "ana", false).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let read = read_publisher(&path).unwrap();
    assert_eq!((read.public_line(), read.name()), (line.clone(), "ana"));
    let shown = format!("{read:?}");
    let secret = std::fs::read_to_string(&path).unwrap();
    let secret = secret.lines().nth(1).unwrap().split(' ').next().unwrap();
    assert!(!shown.contains(secret) && !line.contains(secret));
    let public = dir.path().join("ana.key.pub");
    assert_eq!(
        std::fs::read_to_string(&public).unwrap(),
        format!("{line}\n")
    );
    let list = PublishersFile::open(&public).unwrap();
    assert_eq!(list.keys().len(), 1);
    assert!(
        write_publisher(&path, "ana", false)
            .unwrap_err()
            .to_string()
            .contains("--force")
    );
    // A secret file in place of a public one and vice versa, and files that others can read or change.
    let wrong = PublishersFile::open(&path).unwrap_err().to_string();
    assert!(
        wrong.contains("secret key") && !wrong.contains(secret),
        "{wrong}"
    );
    assert!(
        read_publisher(&public)
            .unwrap_err()
            .to_string()
            .contains("chmod")
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(
        read_publisher(&path)
            .unwrap_err()
            .to_string()
            .contains("chmod 600")
    );
    std::fs::set_permissions(&public, std::fs::Permissions::from_mode(0o664)).unwrap();
    let error = PublishersFile::open(&public).unwrap_err().to_string();
    assert!(error.contains("chmod go-w"), "{error}");
}

/// A signature with the identity as its point R satisfies the equation of RFC 8032, 5.1.7. The owner of a key
/// can create such signatures, and verifiers that are not strict disagree about them.
#[cfg(feature = "curve")]
#[test]
fn a_signature_with_a_point_of_small_order_is_refused_though_it_satisfies_the_equation() {
    use curve25519_dalek::Scalar;
    use ed25519_dalek::Verifier as _;
    use sha2::{Digest, Sha512};
    let ana = publisher(1, "ana");
    let (key, hash) = (ana.key.verifying_key(), [7; 32]);
    let mut point = [0; 32];
    point[0] = 1;
    let parts = [&point[..], key.as_bytes(), &hash].concat();
    let challenge = Scalar::from_bytes_mod_order_wide(&Sha512::digest(parts).into());
    let number = (challenge * ana.key.to_scalar()).to_bytes();
    let bytes: [u8; 64] = [point, number].concat().try_into().unwrap();
    key.verify(&hash, &Signature::from_bytes(&bytes)).unwrap();
    let trust = trust(&ana.public_line(), false);
    assert!(trust.check("ana", &hash, &text::hex(&bytes)).is_err());
}
