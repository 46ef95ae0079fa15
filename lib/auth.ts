/** Who calls: bearer tokens, checked with jose, and the command that makes them. */
import * as jose from 'jose';
import type { Logger } from 'pino';
import { CONNECT_TIMEOUT, type Config, type TokenOptions } from './config.ts';
import { Problem, StartError, unavailable } from './problem.ts';

type Caller = { sub: string; scopes: string[]; expires: number };
const MAX_CALLERS = 1000; // verified tokens that are remembered
const CLOCK_TOLERANCE = 5; // s
const ASYMMETRIC = ['RS256', 'ES256', 'EdDSA', 'Ed25519'];
const COOLDOWN = 30_000; // ms from keys that were fetched to the next fetch
const RETRY = 1000; // ms from any fetch to the next
const MAX_KEY_SET = 2 ** 20; // characters
const MAX_KEYS = 100;

type AuthOptions = Pick<
  Config,
  'AUTH' | 'JWT_SECRET' | 'JWKS_URL' | 'JWT_WRITE_SCOPE' | 'JWT_ISSUER' | 'JWT_AUDIENCE'
>;

/** The caller's `sub`, '' where no token is needed. Throws Problem 401, 403, 503. */
export type Authorize = (authorization: string | undefined, writes: boolean) => Promise<string>;

export function createAuth(options: AuthOptions, log: Logger): Authorize {
  const { JWT_SECRET = [], JWKS_URL, JWT_WRITE_SCOPE: scope, JWT_ISSUER, JWT_AUDIENCE } = options;
  const secrets = JWT_SECRET.map((secret) => () => Buffer.from(secret));
  const keys = JWKS_URL ? [remoteKeys(JWKS_URL, log)] : secrets;
  const checks = {
    algorithms: JWKS_URL ? ASYMMETRIC : ['HS256'],
    requiredClaims: ['exp', 'sub'],
    clockTolerance: CLOCK_TOLERANCE,
    ...(JWT_ISSUER && { issuer: JWT_ISSUER }),
    ...(JWT_AUDIENCE && { audience: JWT_AUDIENCE }),
  };
  const callers = new Map<string, Caller>();
  return async (authorization = '', writes) => {
    if (!needsToken(options, writes)) return '';
    let caller = callers.get(authorization);
    if (!caller || caller.expires < Date.now()) {
      caller = await verify(authorization, keys, checks);
      if (callers.size >= MAX_CALLERS) callers.clear();
      callers.set(authorization, caller);
    }
    if (!writes || !scope || caller.scopes.includes(scope)) return caller.sub;
    const hint = `A write needs a token with the scope ${scope}.`;
    throw new Problem(403, '42501', 'The token does not allow writes.', hint);
  };
}

/** Whether a read, or a write, needs a token. */
export function needsToken({ AUTH, JWT_SECRET, JWKS_URL }: AuthOptions, writes: boolean): boolean {
  const mode = AUTH ?? (JWT_SECRET || JWKS_URL ? 'all' : 'none');
  return mode === 'all' || (mode === 'write' && writes);
}

/** The caller by whichever key fits: there are two while a secret is rotated. */
async function verify(
  authorization: string,
  keys: jose.JWTVerifyGetKey[],
  checks: jose.JWTVerifyOptions,
): Promise<Caller> {
  const token = /^Bearer +([\w.~+/=-]+)$/i.exec(authorization)?.[1];
  if (!token) throw unauthorized('PGRST302', 'A token is required');
  const tries = keys.map((key) => jose.jwtVerify(token, key, checks));
  const { payload } = await Promise.any(tries).catch(({ errors }: AggregateError) => {
    const expired = errors.some((error) => error instanceof jose.errors.JWTExpired);
    const problem = errors.find((error) => error instanceof Problem);
    throw problem ?? (expired ? unauthorized('PGRST303', 'JWT expired') : unauthorized());
  });
  const { sub, exp, scope } = payload as Record<string, unknown>;
  if (typeof sub !== 'string' || sub === '') throw unauthorized();
  const expires = (Number(exp) + CLOCK_TOLERANCE) * 1000;
  return { sub, scopes: String(scope ?? '').split(' '), expires };
}

/** RFC 6750, 3: an error is named only for a request that had a token. */
function unauthorized(code = 'PGRST301', detail = 'JWT invalid'): Problem {
  const why = code === 'PGRST302' ? '' : ` error="invalid_token", error_description="${detail}"`;
  const headers = { 'WWW-Authenticate': `Bearer realm="api"${why}` };
  return new Problem(401, code, detail, 'Send "Authorization: Bearer <token>".', { headers });
}

/** Keys that serve on while their source is unavailable. */
function remoteKeys(url: string, log: Logger): jose.JWTVerifyGetKey {
  let next = 0;
  const fetchKeys: jose.FetchImplementation = async (href, init) => {
    const problem = unavailable('The keys for tokens are not available.', 'PGRST300');
    if (Date.now() < next) throw problem;
    next = Date.now() + RETRY;
    return fetchKeySet(href, init as RequestInit).catch((error) => {
      log.warn({ error: String(error.cause ?? error) }, 'JWKS_URL failed');
      throw problem;
    });
  };
  return jose.createRemoteJWKSet(new URL(url), {
    cacheMaxAge: Infinity,
    cooldownDuration: COOLDOWN,
    timeoutDuration: CONNECT_TIMEOUT,
    [jose.customFetch]: fetchKeys,
  });
}

/** jose 6 neither bounds the answer nor refuses an empty set. Throws Error that says what is wrong. */
async function fetchKeySet(href: string, init: RequestInit): Promise<Response> {
  const response = await fetch(href, init);
  if (response.status !== 200) throw new Error(`status ${response.status}`);
  let text = '';
  for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    text += part;
    if (text.length > MAX_KEY_SET) throw new Error(`more than ${MAX_KEY_SET} characters`);
  }
  const keys = [Object(JSON.parse(text)).keys].flat();
  if (keys.length > MAX_KEYS) throw new Error(`${keys.length} keys, more than ${MAX_KEYS}`);
  const usable = keys.filter((key) => typeof key?.kty === 'string');
  if (usable.length === 0) throw new Error('no key');
  return Response.json({ keys: usable });
}

/** `token --sub me --scope write --expires 1h`: a token signed with the first JWT_SECRET. */
export async function makeToken(config: AuthOptions, options: TokenOptions): Promise<string> {
  const { JWT_SECRET: [secret] = [], JWT_ISSUER, JWT_AUDIENCE } = config;
  if (!secret) throw new StartError('JWT_SECRET is needed to sign a token');
  const { sub = 'me', scope, expires = '1h' } = options;
  const claims = { sub, scope, iss: JWT_ISSUER, aud: JWT_AUDIENCE } as jose.JWTPayload;
  const token = new jose.SignJWT(claims).setProtectedHeader({ alg: 'HS256' });
  return token.setIssuedAt().setExpirationTime(expires).sign(Buffer.from(secret));
}
