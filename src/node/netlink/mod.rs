//! Netlink: the socket, and for each kind of object the requests and the decoder.

pub mod addr;
pub mod announce;
pub mod attr;
pub mod dumps;
pub mod fib;
pub mod link;
pub mod netconf;
pub mod nft;
pub mod rewrite;
pub mod route;
pub mod rule;
pub mod socket;
#[cfg(test)]
mod tests;
