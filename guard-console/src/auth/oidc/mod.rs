//! Signing in by an identity provider: authorization code with PKCE, discovery, keys that rotate, logout.
//!
//! Owns what is asked of a provider and what is believed of its answers. It is given a provider's configuration and what
//! came back in the browser. It must never take a token that is not signed by a key of the provider for this console and
//! this attempt, and never log a code, a token or a secret.

pub mod attempt;
pub mod claims;
mod http;
mod types;

use std::path::Path;
use std::sync::Arc;

use openidconnect::core::{CoreClientAuthMethod, CoreJwsSigningAlgorithm, CoreResponseType};
use openidconnect::{
    AccessTokenHash, AuthType, AuthenticationFlow, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret,
    CsrfToken, IssuerUrl, LogoutRequest, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier,
    PostLogoutRedirectUrl, RedirectUrl, Scope, SignatureVerificationError, SubjectIdentifier, TokenResponse as _,
};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use url::Url;

use crate::auth::secret;
use crate::config::OidcConfig;
use crate::time::{Millis, now, rfc3339};
use attempt::Attempt;
use claims::{Described, GroupsError};
use http::Http;
use types::{Client, Metadata, UserInfo};

/// What a provider published is asked for again after this long.
const KNOWN_MS: Millis = 60 * 60_000;
/// A key that is not known makes us ask at once, but not more often than this.
const AGAIN_MS: Millis = 30_000;
/// A token that was issued longer ago is no answer to an attempt.
const ISSUED_MS: Millis = 10 * 60_000;
/// How far the provider's clock may be ahead.
const AHEAD_MS: Millis = 60_000;
const ID_TOKEN_BYTES: usize = 32 * 1_024;

/// Signatures of keys that only the provider has. Never `none`, never a secret that we share with it.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("{name}: cannot read {path}: {why}")]
    File { name: String, path: String, why: String },
    /// The words are for the log; people are told to try again.
    #[error("cannot be reached, or does not answer as an identity provider: {0}")]
    Unreachable(String),
    /// What the provider answered instead of a code or a token.
    #[error("did not sign you in: {0}")]
    Refused(String),
    /// The words are for the log; people are told that it did not hold.
    #[error("sent an answer that does not hold: {0}")]
    Invalid(String),
    #[error(transparent)]
    Groups(#[from] GroupsError),
}

/// One identity provider.
pub struct Provider {
    pub config: OidcConfig,
    http: Http,
    secret: Option<ClientSecret>,
    issuer: IssuerUrl,
    redirect: RedirectUrl,
    /// Where the browser goes after it signed out there.
    after_logout: PostLogoutRedirectUrl,
    known: Mutex<Option<Known>>,
    /// When it was last asked because of a key that was not known.
    asked_again: Mutex<Millis>,
}

/// What the provider published, and when it was asked.
#[derive(Clone)]
struct Known {
    metadata: Arc<Metadata>,
    at: Millis,
}

/// Somebody who came back signed in.
pub struct Returned {
    pub described: Described,
    /// To be shown to the provider when they sign out; opens nothing.
    pub id_token: Option<String>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Returned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Returned")
            .field("subject", &self.described.subject)
            .finish_non_exhaustive()
    }
}

/// The path that a provider sends browsers back to.
#[must_use]
pub fn callback_path(name: &str) -> String {
    format!("/login/oidc/{name}/callback")
}

impl Provider {
    /// Reads the secret and the certificates; asks the provider nothing yet, so that it need not be there at the start.
    ///
    /// # Errors
    /// A file that cannot be read, or that others can.
    pub fn open(config: OidcConfig, console: &str) -> Result<Self, OidcError> {
        let failed = |path: &Path, why: String| OidcError::File {
            name: config.name.clone(),
            path: path.display().to_string(),
            why,
        };
        let secret = match &config.client_secret_file {
            Some(path) => Some(ClientSecret::new(
                secret::from_file(path).map_err(|why| failed(path, why))?.to_string(),
            )),
            None => None,
        };
        let ca = match &config.ca_file {
            Some(path) => Some(std::fs::read(path).map_err(|e| failed(path, e.to_string()))?),
            None => None,
        };
        let http = Http::new(ca.as_deref()).map_err(|e| match &config.ca_file {
            Some(path) => failed(path, e.to_string()),
            None => OidcError::Unreachable(e.to_string()),
        })?;
        let address = |e: url::ParseError| OidcError::Unreachable(format!("an address of ours: {e}"));
        Ok(Self {
            issuer: IssuerUrl::new(config.issuer.clone()).map_err(address)?,
            redirect: RedirectUrl::new(format!("{console}{}", callback_path(&config.name))).map_err(address)?,
            after_logout: PostLogoutRedirectUrl::new(format!("{console}/login")).map_err(address)?,
            http,
            secret,
            config,
            known: Mutex::new(None),
            asked_again: Mutex::new(0),
        })
    }

    /// Where to send a browser that wants to sign in.
    ///
    /// # Errors
    /// [`OidcError::Unreachable`].
    pub async fn begin(&self, attempt: &Attempt) -> Result<Url, OidcError> {
        let name = &self.config.name;
        let metadata = self.metadata().await?;
        let client = self.client(&metadata);
        let verifier = PkceCodeVerifier::new(attempt.verifier(name));
        let (state, nonce) = (attempt.state(name), attempt.nonce(name));
        let (url, ..) = client
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                move || CsrfToken::new(state),
                move || Nonce::new(nonce),
            )
            .add_scopes(self.config.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url)
    }

    /// Turns the code that the browser brought back into somebody. `iss` is what came with it, if something did.
    ///
    /// # Errors
    /// Whatever does not hold.
    pub async fn finish(&self, attempt: &Attempt, code: &str, iss: Option<&str>) -> Result<Returned, OidcError> {
        let metadata = self.metadata().await?;
        // RFC 9207: an answer of another provider that was led here.
        let tells = metadata
            .additional_metadata()
            .additional_metadata
            .authorization_response_iss_parameter_supported;
        match iss {
            Some(iss) if iss != self.issuer.as_str() => {
                return Err(OidcError::Invalid("it names another issuer".to_owned()));
            }
            None if tells => return Err(OidcError::Invalid("it does not name its issuer".to_owned())),
            _ => {}
        }
        let client = self.client(&metadata);
        let unreachable = |e: &dyn std::fmt::Display| OidcError::Unreachable(e.to_string());
        let tokens = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|e| unreachable(&e))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier(&self.config.name)))
            .request_async(&self.http)
            .await
            .map_err(token_error)?;
        let id_token = tokens
            .id_token()
            .ok_or_else(|| OidcError::Invalid("there is no ID token in it".to_owned()))?;
        let nonce = Nonce::new(attempt.nonce(&self.config.name));
        // The provider may have changed its keys since we asked.
        let unknown_key = matches!(
            id_token.claims(&verifier(&client), &nonce),
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey
            ))
        );
        let client = if unknown_key {
            let metadata = self.metadata_with_new_keys().await?;
            self.client(&metadata)
        } else {
            client
        };
        let invalid = |e: &dyn std::fmt::Display| OidcError::Invalid(e.to_string());
        let verifier = verifier(&client);
        let claims = id_token.claims(&verifier, &nonce).map_err(|e| invalid(&e))?;
        if claims
            .authorized_party()
            .is_some_and(|party| party.as_str() != self.config.client_id)
        {
            return Err(OidcError::Invalid("it was issued to another client (azp)".to_owned()));
        }
        if let Some(expected) = claims.access_token_hash() {
            let algorithm = id_token.signing_alg().map_err(|e| invalid(&e))?;
            let key = id_token.signing_key(&verifier).map_err(|e| invalid(&e))?;
            let hash = AccessTokenHash::from_token(tokens.access_token(), algorithm, key).map_err(|e| invalid(&e))?;
            if hash != *expected {
                return Err(OidcError::Invalid(
                    "its access token is another one (at_hash)".to_owned(),
                ));
            }
        }
        let subject = claims::subject(claims.subject().as_str())
            .ok_or_else(|| OidcError::Invalid("its subject is no identifier".to_owned()))?;
        let said = all_claims(claims)?;
        let mut groups = claims::groups(&said, &self.config.groups_claim)?;
        let mut more = Map::new();
        if groups.is_none() && metadata.userinfo_endpoint().is_some() {
            more = self
                .user_info(&client, tokens.access_token(), claims.subject().clone())
                .await?;
            groups = claims::groups(&more, &self.config.groups_claim)?;
        }
        let groups = groups.ok_or_else(|| GroupsError::Missing(self.config.groups_claim.clone()))?;
        let methods: Vec<&str> = claims
            .auth_method_refs()
            .into_iter()
            .flatten()
            .map(|m| m.as_str())
            .collect();
        let all = [&said, &more];
        Ok(Returned {
            described: Described {
                handle: claims::handle(&all, &subject),
                display_name: claims::words(&all, &["name", "preferred_username"]),
                email: claims::words(&all, &["email"]),
                groups,
                authentication: claims::authentication(
                    claims.auth_time().map(|at| rfc3339(at.timestamp_millis())),
                    claims.auth_context_ref().map(|class| class.as_str()),
                    &methods,
                ),
                subject,
            },
            id_token: Some(id_token.to_string()).filter(|token| token.len() <= ID_TOKEN_BYTES),
        })
    }

    /// Where to send a browser so that it is signed out at the provider too; `None` where that is not possible.
    pub async fn logout(&self, id_token: Option<&str>) -> Option<Url> {
        let metadata = self.metadata().await.ok()?;
        let end = metadata.additional_metadata().end_session_endpoint.clone()?;
        let mut url = LogoutRequest::from(end)
            .set_client_id(ClientId::new(self.config.client_id.clone()))
            .set_post_logout_redirect_uri(self.after_logout.clone())
            .http_get_url();
        if let Some(hint) = id_token {
            url.query_pairs_mut().append_pair("id_token_hint", hint);
        }
        (url.scheme() == "https").then_some(url)
    }

    async fn user_info(
        &self,
        client: &Client,
        token: &openidconnect::AccessToken,
        subject: SubjectIdentifier,
    ) -> Result<Map<String, Value>, OidcError> {
        let unreachable = |e: &dyn std::fmt::Display| OidcError::Unreachable(format!("userinfo: {e}"));
        let request = client
            .user_info(token.clone(), Some(subject))
            .map_err(|e| unreachable(&e))?;
        let info: UserInfo = request.request_async(&self.http).await.map_err(|e| unreachable(&e))?;
        all_claims(&info)
    }

    fn client(&self, metadata: &Metadata) -> Client {
        let methods = metadata.token_endpoint_auth_methods_supported();
        // What a provider that says nothing takes.
        let basic = methods.is_none_or(|all| all.contains(&CoreClientAuthMethod::ClientSecretBasic));
        Client::from_provider_metadata(
            metadata.clone(),
            ClientId::new(self.config.client_id.clone()),
            self.secret.clone(),
        )
        .set_redirect_uri(self.redirect.clone())
        .set_auth_type(if basic {
            AuthType::BasicAuth
        } else {
            AuthType::RequestBody
        })
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, OidcError> {
        let known = self.known.lock().clone();
        match known {
            Some(known) if now() - known.at < KNOWN_MS => Ok(known.metadata),
            // What was known an hour ago still does while the provider's document cannot be had.
            Some(known) => Ok(self.ask().await.unwrap_or(known.metadata)),
            None => self.ask().await,
        }
    }

    async fn metadata_with_new_keys(&self) -> Result<Arc<Metadata>, OidcError> {
        let again = {
            let mut asked = self.asked_again.lock();
            let again = now() - *asked >= AGAIN_MS;
            if again {
                *asked = now();
            }
            again
        };
        if again { self.ask().await } else { self.metadata().await }
    }

    async fn ask(&self) -> Result<Arc<Metadata>, OidcError> {
        let metadata = Metadata::discover_async(self.issuer.clone(), &self.http)
            .await
            .map_err(|e| OidcError::Unreachable(discovery_error(&e)))?;
        let metadata = Arc::new(metadata);
        *self.known.lock() = Some(Known {
            metadata: metadata.clone(),
            at: now(),
        });
        Ok(metadata)
    }
}

fn verifier(client: &Client) -> openidconnect::core::CoreIdTokenVerifier<'_> {
    client
        .id_token_verifier()
        .set_allowed_algs(ALGORITHMS)
        .set_issue_time_verifier_fn(|issued| {
            let age = now() - issued.timestamp_millis();
            if (-AHEAD_MS..=ISSUED_MS).contains(&age) {
                Ok(())
            } else {
                Err(format!("it was issued {} s ago by the provider's clock", age / 1_000))
            }
        })
}

/// Every claim by its name, whoever defined it.
fn all_claims(claims: &impl serde::Serialize) -> Result<Map<String, Value>, OidcError> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(all)) => Ok(all),
        _ => Err(OidcError::Invalid("its claims are no object".to_owned())),
    }
}

/// What the provider says is shown, its answer's bytes are not: they may hold tokens.
fn token_error<T>(error: openidconnect::RequestTokenError<http::HttpError, T>) -> OidcError
where
    T: openidconnect::ErrorResponse + std::fmt::Display + 'static,
{
    use openidconnect::RequestTokenError as E;
    match error {
        E::ServerResponse(said) => OidcError::Refused(guard_evidence::text::visible_fold(&format!("{said}"), 200)),
        E::Request(why) => OidcError::Unreachable(why.to_string()),
        E::Parse(why, _) => OidcError::Invalid(format!("not a token answer: {}", why.path())),
        E::Other(why) => OidcError::Unreachable(guard_evidence::text::visible_fold(&why, 200)),
    }
}

fn discovery_error(error: &openidconnect::DiscoveryError<http::HttpError>) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    guard_evidence::text::visible_fold(&format!("{error}{cause}"), 300)
}
