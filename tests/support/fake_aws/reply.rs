//! How the services answer: ECR and ECR Public in JSON 1.1, STS in the XML of the query protocol.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::{Value, json};

pub(super) const JSON: &str = "application/x-amz-json-1.1";
pub(super) const XML: &str = "text/xml";

pub(super) fn ecr_answer(body: &Value) -> Response<Body> {
    with(StatusCode::OK, JSON, Body::from(body.to_string()))
}

pub(super) fn ecr_error(status: StatusCode, code: &'static str, message: &str) -> Response<Body> {
    let body = json!({"__type": code, "message": message}).to_string();
    let mut response = with(status, JSON, Body::from(body));
    response
        .headers_mut()
        .insert("x-amzn-errortype", header::HeaderValue::from_static(code));
    response
}

pub(super) fn sts_answer(operation: &str, result: &str) -> Response<Body> {
    let body = format!(
        "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <{operation}Result>{result}</{operation}Result>\
         <ResponseMetadata><RequestId>fake</RequestId></ResponseMetadata></{operation}Response>"
    );
    with(StatusCode::OK, XML, Body::from(body))
}

pub(super) fn sts_error(status: StatusCode, code: &str) -> Response<Body> {
    sts_error_saying(status, code, "The fake says so.")
}

pub(super) fn sts_error_saying(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>fake</RequestId></ErrorResponse>"
    );
    with(status, XML, Body::from(body))
}

/// Returns IAM's message for a refusal, which names the principal, the action and the resource.
pub(super) fn denied(principal: &str, action: &str, resource: &str) -> String {
    format!(
        "User: {principal} is not authorized to perform: {action} on resource: {resource} because no identity-based \
         policy allows the {action} action"
    )
}

pub(super) fn with(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header("x-amzn-requestid", "fake")
        .body(body)
        .unwrap()
}
