//! Rules of every kind are read, and no message makes the readers panic.

use super::expressions::*;
use super::*;

#[test]
fn fuzz() {
    crate::fuzz::run("nftables", |bytes| {
        let rules = [INET, IPV4, IPV6].map(|family| rule(bytes, family));
        let nested = bytes.get(HEADER..).is_some_and(|value| read_verdict(value).is_ok());
        nested || chain(bytes).is_ok() || rules.iter().any(Result::is_ok)
    });
}

#[test]
fn a_mask_is_a_prefix_or_none() {
    for (mask, length) in [
        (&[0xff, 0xf0, 0, 0][..], Some(12)),
        (&[0xff; 16], Some(128)),
        (&[0; 4], Some(0)),
        (&[0xff, 0, 0xff, 0], None),
        (&[0xf1], None),
    ] {
        assert_eq!(prefix_length(mask), length, "{mask:?}");
    }
}

#[test]
fn verdicts_of_every_kind_are_read() {
    let expression =
        |kind: &str, data: &[u8]| attribute_of(1, &[attribute_of(1, kind.as_bytes()), attribute_of(2, data)].concat());
    let number = |kind, number: i32| attribute_of(kind, &number.to_be_bytes());
    let verdict = |code| {
        let verdict = attribute_of(2, &[number(1, code), attribute_of(2, b"next\0")].concat());
        expression("immediate\0", &[number(1, 0), attribute_of(2, &verdict)].concat())
    };
    let target = |name: &str| expression("target\0", &attribute_of(1, name.as_bytes()));
    for (case, expression, wanted, conditions) in [
        ("drop", verdict(0), Verdict::Drop, 0),
        ("accept", verdict(1), Verdict::Accept, 0),
        ("continue", verdict(-1), Verdict::Continue, 0),
        ("whatever a newer kernel has", verdict(-9), Verdict::Unknown, 0),
        ("jump", verdict(-3), Verdict::Chain(b"next".into(), false), 0),
        ("goto", verdict(-4), Verdict::Chain(b"next".into(), true), 0),
        ("return", verdict(-5), Verdict::Return, 0),
        ("reject", expression("reject\0", &number(1, 0)), Verdict::Drop, 0),
        ("a program may accept", expression("queue\0", &[]), Verdict::Unknown, 0),
        ("-j REJECT", target("REJECT\0"), Verdict::Drop, 0),
        ("-j NFQUEUE", target("NFQUEUE\0"), Verdict::Unknown, 0),
        ("-j LOG", target("LOG\0"), Verdict::Continue, 0),
        ("masquerade", expression("masq\0", &[]), Verdict::Masquerade, 0),
        ("masquerade random", expression("masq\0", &number(1, 4)), Verdict::Continue, 1),
    ] {
        let rule = rule(&[&[INET, 0, 0, 0], &*attribute_of(4, &expression)].concat(), INET).unwrap();
        assert_eq!((rule.verdict, rule.conditions.len()), (wanted, conditions), "{case}");
    }
}

fn attribute() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let leaf = (0_u8..9, prop_oneof![Just(b"meta\0".to_vec()), prop::collection::vec(any::<u8>(), 0..9)])
        .prop_map(|(kind, value)| attribute_of(kind, &value));
    leaf.prop_recursive(5, 40, 4, |inner| {
        (0_u8..9, prop::collection::vec(inner, 0..4)).prop_map(|(kind, all)| attribute_of(kind, &all.concat()))
    })
}

fn attribute_of(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

proptest::proptest! {
    #[test]
    fn no_message_makes_it_panic(
        bytes in proptest::collection::vec(0_u8.., 0..64),
        attributes in proptest::collection::vec(attribute(), 0..5),
        family in proptest::sample::select(vec![INET, IPV4, IPV6]),
    ) {
        let attributes = [&[family, 0, 0, 0][..], &attributes.concat()].concat();
        for message in [&bytes, &attributes] {
            let _ = (rule(message, family), chain(message));
        }
    }
}
