//! Joining: the one service without a client certificate.

use std::sync::Arc;

use guard_proto::v1::enrolment_server::Enrolment;
use guard_proto::v1::{EnrollReply, EnrollRequest};
use tonic::{Request, Response, Status};

use super::{Peer, status};
use crate::app::App;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address);
        match self.app.enroll(request.get_ref()).await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(error) => {
                tracing::warn!(?address, %error, "enrolment refused");
                Err(status(error))
            }
        }
    }
}
