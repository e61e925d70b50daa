//! One request: whose it is, what answers it, and what every answer has in common.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::{Frame, Incoming, SizeHint};
use tower::Service as _;

use super::{
    access::Peer,
    app::App,
    error::{self, PROBLEM_JSON},
    gate::{self, Route},
    pool::{Phase, Place},
};

/// What answers the requests of every connection.
#[derive(Debug, Clone)]
pub struct Front {
    pub app: Arc<App>,
    pub router: Router,
}

/// What answers the requests of one connection.
#[derive(Debug, Clone)]
pub struct Service {
    front: Front,
    peer: Arc<Peer>,
    place: Arc<Place>,
}

impl Service {
    #[must_use]
    pub fn new(front: Front, peer: Peer, place: Arc<Place>) -> Self {
        Self { front, peer: Arc::new(peer), place }
    }

    async fn answer(self, request: Request) -> Response {
        let method = request.method().clone();
        let answer = AssertUnwindSafe(self.clone().route(request)).catch_unwind().await;
        let response = answer.unwrap_or_else(|_| {
            error::internal("answer a request", &"a handler panicked").into_response()
        });
        let mut response = as_problem(response);
        let route = response.extensions_mut().remove::<Route>().map_or("", |route| route.0);
        self.front.app.counters.count(&method, route, response.status());
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.place.enter(Phase::Sending);
        response.map(|body| Body::new(Watched { body, place: self.place }))
    }

    async fn route(mut self, mut request: Request) -> Response {
        let access = self.front.app.access();
        if let Err(problem) = access.check_host(&self.peer, request.uri(), request.headers()) {
            return problem.into_response();
        }
        match access.authenticate(&self.peer, request.headers()) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(_) if gate::is_open(request.uri().path()) => {}
            Err(problem) => return problem.into_response(),
        }
        request.extensions_mut().insert(self.place);
        match self.front.router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

impl hyper::service::Service<hyper::Request<Incoming>> for Service {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        self.place.enter(Phase::Working);
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request.map(Body::new)).await) })
    }
}

/// Whatever is not a success and not ours becomes a problem document all the same.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if status.is_success() || kind.is_some_and(|kind| kind == PROBLEM_JSON) {
        return response;
    }
    let status = if status.as_u16() < 400 { StatusCode::INTERNAL_SERVER_ERROR } else { status };
    let mut problem = error::of_status(status).into_response();
    for (name, value) in response.headers() {
        if !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH) {
            problem.headers_mut().append(name, value.clone());
        }
    }
    problem
}

/// A body that tells the pool when it is all out.
struct Watched {
    body: Body,
    place: Arc<Place>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.place.enter(Phase::Waiting);
    }
}
