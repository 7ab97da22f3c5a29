//! FaaSNet.
