//! The manager's term: each manager on a store has a higher one, and only the highest may write.

use faasnet_actors::world::{Batch, BatchLimits, Condition, Metadata, MetadataError, Row, Table, Write};
use futures::future::{BoxFuture, FutureExt};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

const KEY: &str = "term";

/// Managers that may begin at the same moment; each time one of them succeeds.
const ATTEMPTS_MAX: usize = 16;

/// A metadata store in one manager's hands: every commit holds only while no manager with a higher term
/// has begun. After that all commits fail as `Superseded`.
#[derive(Clone)]
pub struct Term {
    store: Arc<dyn Metadata>,
    number: u64,
    superseded: watch::Sender<bool>,
}

impl Term {
    /// Raises the term, and thereby ends that of any manager before on this store.
    pub async fn begin(store: Arc<dyn Metadata>) -> Result<Self, MetadataError> {
        let mut attempts = 0;
        loop {
            let before = read(store.as_ref()).await?;
            let number = match &before {
                None => 1,
                Some(bytes) => number(bytes)? + 1,
            };
            let batch = Batch {
                conditions: vec![condition(before)],
                writes: vec![Write::Put(Row { table: Table::Values, key: KEY.into(), value: bytes(number) })],
            };
            attempts += 1;
            match store.commit(batch).await {
                Ok(()) => return Ok(Self { store, number, superseded: watch::Sender::new(false) }),
                Err(MetadataError::Conflict { .. }) if attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns when another manager has a higher term: when a commit shows it, or else when this looks, every
    /// `period`. A store that is away shows nothing.
    pub async fn superseded(&self, period: Duration) {
        let mut superseded = self.superseded.subscribe();
        loop {
            tokio::select! {
                seen = superseded.wait_for(|superseded| *superseded) => {
                    seen.expect("its sender is here");
                    return;
                }
                () = tokio::time::sleep(period) => self.look().await,
            }
        }
    }

    async fn look(&self) {
        if let Ok(Some(bytes)) = read(self.store.as_ref()).await
            && number(&bytes).is_ok_and(|number| number > self.number)
        {
            self.superseded.send_replace(true);
        }
    }
}

impl Metadata for Term {
    fn limits(&self) -> BatchLimits {
        let BatchLimits { operations_max, bytes_max } = self.store.limits();
        BatchLimits {
            operations_max: operations_max - 1,
            bytes_max: bytes_max - KEY.len() - size_of::<u64>(),
        }
    }

    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>> {
        self.store.scan(table)
    }

    fn commit(&self, mut batch: Batch) -> BoxFuture<'static, Result<(), MetadataError>> {
        batch.conditions.insert(0, condition(Some(bytes(self.number))));
        let superseded = self.superseded.clone();
        let judge = move |result| match result {
            Err(MetadataError::Conflict { table: Table::Values, key }) if key == KEY => {
                superseded.send_replace(true);
                Err(MetadataError::Superseded)
            }
            result => result,
        };
        Box::pin(self.store.commit(batch).map(judge))
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.store.close()
    }
}

async fn read(store: &dyn Metadata) -> Result<Option<Vec<u8>>, MetadataError> {
    let rows = store.scan(Table::Values).await?;
    Ok(rows.into_iter().find(|row| row.key == KEY).map(|row| row.value))
}

fn condition(value: Option<Vec<u8>>) -> Condition {
    Condition { table: Table::Values, key: KEY.into(), value }
}

fn bytes(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn number(bytes: &[u8]) -> Result<u64, MetadataError> {
    let bytes = bytes.try_into().map_err(|_| MetadataError::Damaged("the term is no number".into()))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::RedbMetadata;

    async fn begin(store: &Arc<dyn Metadata>) -> Term {
        Term::begin(Arc::clone(store)).await.expect("begun")
    }

    fn store(folder: &tempfile::TempDir) -> Arc<dyn Metadata> {
        Arc::new(RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened"))
    }

    fn put(key: &str) -> Batch {
        vec![Write::Put(Row { table: Table::Values, key: key.into(), value: vec![] })].into()
    }

    #[tokio::test]
    async fn a_manager_that_was_superseded_writes_nothing_and_hears_of_it() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder);
        let first = begin(&store).await;
        first.commit(put("before")).await.expect("it is the newest");
        let second = begin(&store).await;
        assert_eq!((first.number(), second.number()), (1, 2));
        assert_eq!(first.commit(put("after")).await, Err(MetadataError::Superseded));
        first.superseded(Duration::MAX).await;
        second.commit(put("by the second")).await.expect("it is the newest");
        let rows = store.scan(Table::Values).await.expect("scanned");
        let keys: Vec<_> = rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, ["before", "by the second", "term"]);
    }

    #[tokio::test]
    async fn a_manager_that_writes_nothing_sees_that_it_was_superseded() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder);
        let first = begin(&store).await;
        begin(&store).await;
        first.superseded(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn managers_that_begin_together_get_terms_of_their_own() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder);
        let terms = futures::future::join_all((0..10).map(|_| begin(&store))).await;
        let mut numbers: Vec<u64> = terms.iter().map(Term::number).collect();
        numbers.sort();
        assert_eq!(numbers, Vec::from_iter(1..=10));
    }

    #[tokio::test]
    async fn the_largest_batch_goes_through() {
        let folder = tempfile::tempdir().expect("folder");
        let term = begin(&store(&folder)).await;
        let value = vec![0; term.limits().bytes_max - 1];
        let row = Row { table: Table::Values, key: "k".into(), value };
        term.commit(vec![Write::Put(row)].into()).await.expect("as large as it says");
    }
}
