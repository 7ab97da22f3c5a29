//! An address that may be left out: `""`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::net::SocketAddr;

pub fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
    address.map_or_else(String::new, |address| address.to_string()).serialize(to)
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    let wrong = |error| D::Error::custom(format!("{text:?} is no address such as 127.0.0.1:7081: {error}"));
    (!text.is_empty()).then(|| text.parse().map_err(wrong)).transpose()
}
