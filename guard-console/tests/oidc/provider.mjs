// A real identity provider (npm oidc-provider) for the tests of signing in: HTTPS on loopback, whose next visitor is
// chosen by POST /control. It signs in whoever is chosen without asking, can change its keys, and can be told to answer
// with a token that does not hold.
//
// Given: OIDC_MODULES (a node_modules directory), OIDC_CERT and OIDC_KEY (PEM files). Prints its port.
import { createServer } from 'node:https';
import { readFileSync } from 'node:fs';
import { createHash, generateKeyPairSync, randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

// Standard output is for the port, and its reader goes away afterwards.
console.log = console.info = console.warn = (...words) => console.error(...words);

const modules = process.env.OIDC_MODULES;
const require = createRequire(pathToFileURL(join(modules, 'x.js')));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { default: Provider } = await load('oidc-provider');
const jose = await load('jose');

const CLIENT = 'guard';
const SECRET = 'a secret of the test, long enough';

// What the tests choose.
const chosen = {
  account: null, accounts: {}, redirects: [], methods: 'client_secret_basic', idTokenGroups: true,
  forge: null, amr: ['pwd', 'otp'], acr: 'urn:example:two', seen: { token: 0, discovery: 0, verifiers: 0 },
};
let nonce = null;
let key = newKey();
let provider = null;
let issuer = null;

function newKey(kind = 'ec') {
  const options = kind === 'ec' ? { namedCurve: 'P-256' } : { modulusLength: 2048 };
  const { privateKey } = generateKeyPairSync(kind, options);
  const alg = kind === 'ec' ? 'ES256' : 'RS256';
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg };
}

function make() {
  provider = new Provider(issuer, {
    clients: [{
      client_id: CLIENT, client_secret: SECRET, redirect_uris: chosen.redirects, response_types: ['code'],
      grant_types: ['authorization_code'], token_endpoint_auth_method: chosen.methods,
      id_token_signed_response_alg: key.alg,
      post_logout_redirect_uris: chosen.redirects.map((uri) => new URL('/login', uri).href),
    }],
    jwks: { keys: [key] },
    clientAuthMethods: [chosen.methods],
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256'] },
    claims: { openid: ['sub', 'acr', 'amr', 'auth_time'], profile: ['name', 'preferred_username'], email: ['email'], groups: ['groups', 'hasgroups'] },
    scopes: ['openid', 'profile', 'email', 'groups'],
    conformIdTokenClaims: !chosen.idTokenGroups,
    pkce: { required: () => true },
    acrValues: [chosen.acr],
    cookies: { keys: ['test'] },
    features: { devInteractions: { enabled: false }, rpInitiatedLogout: { enabled: true,
      logoutSource(ctx, form) {
        ctx.body = `<!doctype html>${form}<button form="op.logoutForm" name="logout" value="yes">yes</button>`;
      } } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    async findAccount(_, id) {
      const account = chosen.accounts[id];
      return account && { accountId: id, claims: async () => ({ sub: id, ...account }) };
    },
    // Nobody is asked for consent.
    async loadExistingGrant(ctx) {
      const grant = new ctx.oidc.provider.Grant({ clientId: CLIENT, accountId: ctx.oidc.session.accountId });
      grant.addOIDCScope('openid profile email groups');
      await grant.save();
      return grant;
    },
  });
  // The state of visits is the module's, not the instance's: a new instance is the same provider with other keys.
  provider.on('server_error', (_, error) => console.error(error));
}

async function forged(access) {
  const sub = chosen.account;
  const now = Math.floor(Date.now() / 1000);
  const claims = { iss: issuer, aud: CLIENT, sub, nonce, iat: now, exp: now + 300, groups: chosen.accounts[sub]?.groups ?? [] };
  let signer = key;
  const header = { alg: key.alg, kid: key.kid };
  switch (chosen.forge) {
    case 'good': break;
    case 'nonce': claims.nonce = 'another'; break;
    case 'no-nonce': delete claims.nonce; break;
    case 'aud': claims.aud = 'another-client'; break;
    case 'audiences': claims.aud = [CLIENT, 'another-client']; break;
    case 'azp': claims.azp = 'another-client'; break;
    case 'iss': claims.iss = 'https://evil.example.org'; break;
    case 'expired': claims.iat = now - 400; claims.exp = now - 100; break;
    case 'old': claims.iat = now - 3600; claims.exp = now + 3600; break;
    case 'future': claims.iat = now + 3600; claims.exp = now + 7200; break;
    case 'at_hash': claims.at_hash = createHash('sha256').update('another').digest().subarray(0, 16).toString('base64url'); break;
    case 'key': signer = { ...newKey(), kid: key.kid }; break;
    case 'subject': claims.sub = 'a\nb'; break;
    case 'none': {
      const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
      return `${part({ alg: 'none' })}.${part(claims)}.`;
    }
    case 'shared-secret':
      return new jose.SignJWT(claims).setProtectedHeader({ alg: 'HS256' }).sign(new TextEncoder().encode(SECRET));
    case 'public-key': {
      // The classical confusion: the public key's text as a shared secret.
      const text = JSON.stringify({ kty: key.kty, crv: key.crv, x: key.x, y: key.y });
      return new jose.SignJWT(claims).setProtectedHeader({ alg: 'HS256', kid: key.kid }).sign(new TextEncoder().encode(text));
    }
    default: throw new Error(`no such forgery: ${chosen.forge}`);
  }
  return new jose.SignJWT(claims).setProtectedHeader(header).sign(await jose.importJWK(signer, header.alg));
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

function json(response, value, status = 200) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(value));
}

async function control(request, response) {
  const { rotate, restart, ...change } = JSON.parse(await body(request));
  Object.assign(chosen, change);
  if (rotate) key = newKey(rotate === true ? 'ec' : rotate);
  if (rotate || restart) make();
  json(response, { seen: chosen.seen });
}

const server = createServer({ cert: readFileSync(process.env.OIDC_CERT), key: readFileSync(process.env.OIDC_KEY) }, async (request, response) => {
  try {
    const url = new URL(request.url, issuer);
    if (url.pathname === '/control') return await control(request, response);
    if (url.pathname === '/redirecting/.well-known/openid-configuration') {
      response.writeHead(302, { location: '/.well-known/openid-configuration' });
      return response.end();
    }
    if (url.pathname === '/large/.well-known/openid-configuration') {
      response.writeHead(200, { 'content-type': 'application/json' });
      return response.end(`{"issuer": "${'x'.repeat(2_000_000)}"}`);
    }
    if (url.pathname === '/.well-known/openid-configuration') chosen.seen.discovery += 1;
    if (url.pathname === '/auth') nonce = url.searchParams.get('nonce') ?? nonce;
    if (url.pathname.startsWith('/interaction/')) {
      if (!chosen.account) return provider.interactionFinished(request, response, { error: 'access_denied', error_description: 'nobody <b>is</b> here' });
      return await provider.interactionFinished(request, response, {
        login: { accountId: chosen.account, acr: chosen.acr, amr: chosen.amr },
      });
    }
    if (url.pathname === '/token') {
      chosen.seen.token += 1;
      if (chosen.forge) {
        const fields = new URLSearchParams(await body(request));
        if (fields.get('code_verifier')?.length === 43) chosen.seen.verifiers += 1;
        const access = 'an-access-token';
        return json(response, { access_token: access, token_type: 'Bearer', expires_in: 300, id_token: await forged(access) });
      }
    }
    return provider.callback()(request, response);
  } catch (error) {
    console.error(error);
    json(response, { error: String(error) }, 500);
  }
});

server.listen(0, '127.0.0.1', () => {
  issuer = `https://localhost:${server.address().port}`;
  make();
  process.stdout.write(`${server.address().port}\n`);
});
// Ends with the test, however that ends.
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
