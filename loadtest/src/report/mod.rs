//! What every verb that measures hands over: tables for the terminal, a file of JSON for programs, and a page
//! of HTML for people, which needs nothing but itself: its plots are SVG inside it.
//!
//! A page is put together piece by piece and then written; a plot is drawn when the page is.
//!
//! ```no_run
//! # use faasnet_loadtest::report::{Axis, Page, Plot, Series, Table};
//! let mut page = Page::new("Starts of 128 containers");
//! page.section("Figure 15").text("Ours beside the points that the paper draws.");
//! page.plot(
//!     Plot::new("start times", Axis::linear("containers started"), Axis::log("s"))
//!         .with(Series::line("measured", [(1.0, 0.5), (2.0, 0.7)]))
//!         .with(Series::points("paper", [(1.0, 5.1), (2.0, 5.3)])),
//! );
//! page.table(Table::new(["percentile", "s"]).row(["50", "0.61"]));
//! page.write(std::path::Path::new("target/report"), "figure-15", &serde_json::json!({ "p50_s": 0.61 }))?;
//! # anyhow::Ok(())
//! ```

mod axis;
mod page;
mod plot;
mod table;

pub use axis::Axis;
pub use page::{Page, Written};
pub use plot::{Mark, Plot, Series};
pub use table::Table;
