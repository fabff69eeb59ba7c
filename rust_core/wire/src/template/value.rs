//! JSON as the objects that Python would have: a `dict`, a `list` and a `float` that print as they do there.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectExt as _, ObjectRepr};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::python;

/// A value out of JSON, with the strings copied once.
pub(super) struct Json(pub(super) Value);

/// A `dict`: keys keep their order, the last of two equal keys gives the value.
#[derive(Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Where each key is; only where there are many.
    places: Option<HashMap<Arc<str>, usize>>,
}

/// A `list`.
pub(super) struct List(pub(super) Vec<Value>);

/// A `float` that Rust writes in another way than Python.
struct Float(f64);

/// Most entries that are looked through one by one.
const FEW: usize = 16;
/// The first magnitude at which the parser's numbers no longer say whether an integer was meant.
const INTEGERS_END: f64 = 9_223_372_036_854_775_808.0;

// === impl Dict ===

impl Dict {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.place(key).map(|place| &self.entries[place].1)
    }

    /// The value of `key` unless it is missing or null.
    pub(super) fn some(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|value| !value.is_none())
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn insert(&mut self, key: &str, value: Value) {
        if let Some(place) = self.place(key) {
            self.entries[place].1 = value;
            return;
        }
        let place = self.entries.len();
        self.entries.push((Value::from(key), value));
        if let Some(places) = &mut self.places {
            places.insert(key.into(), place);
        } else if place == FEW {
            let entries = self.entries.iter().enumerate();
            let named = entries.filter_map(|(at, (key, _))| Some((key.as_str()?.into(), at)));
            self.places = Some(named.collect());
        }
    }

    /// The dict that `value` is.
    pub(super) fn of(value: &Value) -> Option<&Dict> {
        value.downcast_object_ref()
    }

    fn place(&self, key: &str) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(key).copied(),
            None => self.entries.iter().position(|(known, _)| known.as_str() == Some(key)),
        }
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Dict {
    fn from(entries: [(&str, Value); N]) -> Dict {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(key, value);
        }
        dict
    }
}

impl From<Dict> for Value {
    fn from(dict: Dict) -> Value {
        Value::from_object(dict)
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_rev_key_value_enumerator(|dict| Box::new(dict.entries.iter().cloned()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        python::write_dict(f, self.entries.iter().map(|(key, value)| (key, value)))
    }
}

// === impl List ===

impl List {
    /// The list that `value` is.
    pub(super) fn of(value: &Value) -> Option<&List> {
        value.downcast_object_ref()
    }
}

impl From<List> for Value {
    fn from(list: List) -> Value {
        Value::from_object(list)
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        python::write_list(f, self.0.iter())
    }
}

// === impl Float ===

/// The number that a float is, wherever it is kept.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if let Some(float) = value.downcast_object_ref::<Float>() {
        return Some(float.0);
    }
    if value.kind() != minijinja::value::ValueKind::Number || value.is_integer() {
        return None;
    }
    f64::try_from(value.clone()).ok()
}

impl Object for Float {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python::float(self.0))
    }
}

// === impl Json ===

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::from(()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                // Python keeps `-0` and long integers as integers; here they arrive as floats.
                if value.abs() >= INTEGERS_END || (value == 0.0 && value.is_sign_negative()) {
                    return Err(E::custom("a number that may be an integer or a float"));
                }
                if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
                    return Ok(value.into());
                }
                Ok(Value::from_object(Float(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Json(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list).into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut dict = Dict::default();
                while let Some(key) = entries.next_key::<std::borrow::Cow<'de, str>>()? {
                    let Json(value) = entries.next_value()?;
                    dict.insert(&key, value);
                }
                Ok(dict.into())
            }
        }

        deserializer.deserialize_any(Reader).map(Json)
    }
}
