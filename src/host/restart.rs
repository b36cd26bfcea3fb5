//! Restarts a pod, and waits until a new one is ready.

use std::time::{Duration, Instant};

use super::Host;
use crate::change::{Change, RestartPod};
use crate::node::{Applied, ApplyError};
use crate::observed::LookAt;

/// How often the new sandbox is checked for.
const POLL: Duration = Duration::from_millis(500);

impl Host {
    /// Removes a pod's sandbox, and waits until a new one is ready.
    pub(super) fn restart(&mut self, change: &Change, restart: &RestartPod) -> Result<Applied, ApplyError> {
        let RestartPod { query, id, .. } = restart;
        let begin = Instant::now();
        let removed = self.node.make(change)?.details.map(|details| format!("; {details}")).unwrap_or_default();
        let patience = query.timeout * 3;
        let end = begin + patience;
        loop {
            let trouble = match self.node.pods(query) {
                Ok(seen) if seen.pods.iter().any(|pod| Some(&pod.id) != id.as_ref()) => {
                    let seconds = begin.elapsed().as_secs_f64();
                    let details = format!("the new sandbox was ready after {seconds:.1} s{removed}");
                    return Ok(Applied { made: true, details: Some(details) });
                }
                Ok(_) => String::new(),
                Err(error) if self.stop.requested() => return Err(ApplyError::Stopped(error.to_string())),
                Err(error) => format!(" ({error})"),
            };
            if Instant::now() >= end {
                let id = id.as_ref().map(ToString::to_string).unwrap_or_default();
                return Err(ApplyError::Refused(format!(
                    "sandbox {id} is stopped, but no new one was ready within {patience:?}{trouble}{removed}; is \
                     kubelet running? see: systemctl status kubelet, journalctl -u kubelet"
                )));
            }
            // If a signal ends this, the next call of crictl reports it.
            self.stop.sleep(POLL);
        }
    }
}
