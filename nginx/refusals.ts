/** What nginx answers itself, byte for byte as a client may send it: for nginx and for the image. */
import { connect } from 'node:net';

const END = 'Host: x\r\nConnection: close\r\n\r\n';
const POST = 'POST /passengers HTTP/1.1\r\n';
const JSON_TYPE = 'Content-Type: application/json\r\n';
const CHUNKED = 'Transfer-Encoding: chunked\r\n';
const chunks = `10000\r\n${' '.repeat(65_536)}\r\n`.repeat(17);

/** What is wrong, the request, and its status. */
export const REFUSALS: [string, string, number][] = [
  ['%zz in a path', `GET /%zz HTTP/1.1\r\n${END}`, 400],
  ['%00 in a path', `GET /passengers/%00 HTTP/1.1\r\n${END}`, 400],
  ['a path above the root', `GET /../etc/passwd HTTP/1.1\r\n${END}`, 400],
  ['a URI of 160 kB', `GET /${'a'.repeat(160_000)} HTTP/1.1\r\n${END}`, 414],
  ['a header line of 160 kB', `GET / HTTP/1.1\r\nX: ${'a'.repeat(160_000)}\r\n${END}`, 431],
  ['headers of 360 kB', `GET / HTTP/1.1\r\n${`X: ${'a'.repeat(3e4)}\r\n`.repeat(12)}${END}`, 431],
  [
    'headers of 150 kB',
    `GET /zero HTTP/1.1\r\n${`X: ${'a'.repeat(1e3)}\r\n`.repeat(150)}${END}`,
    431,
  ],
  ['the method FOO', `FOO /passengers HTTP/1.1\r\n${END}`, 405],
  ['the method TRACE', `TRACE /passengers HTTP/1.1\r\n${END}`, 405],
  ['two lengths', `${POST}Content-Length: 2\r\nContent-Length: 3\r\n${END}{}`, 400],
  ['a length and chunks', `${POST}Content-Length: 2\r\n${CHUNKED}${END}0\r\n\r\n`, 400],
  ['a bad chunk', `${POST}${JSON_TYPE}${CHUNKED}${END}zz\r\n`, 400],
  ['a bad chunk of CSV', `${POST}Content-Type: text/csv\r\n${CHUNKED}${END}zz\r\n`, 400],
  ['a body over the limit', `${POST}${JSON_TYPE}Content-Length: 2000000\r\n${END}`, 413],
  ['chunks over the limit', `${POST}${JSON_TYPE}${CHUNKED}${END}${chunks}`, 413],
  [
    'CSV over the limit',
    `${POST}Content-Type: text/csv\r\nContent-Length: 99999999\r\n${END}`,
    413,
  ],
  ['no Host', 'GET /hello HTTP/1.1\r\n\r\n', 400],
  ['a Host of two words', `GET /hello HTTP/1.1\r\nHost: a b\r\n${END}`, 400],
  ['a header over two lines', `GET /hello HTTP/1.1\r\nUser-Agent: a\r\n b\r\n${END}`, 400],
  ['a NUL in a header', `GET /hello HTTP/1.1\r\nX: a\0b\r\n${END}`, 400],
  ['HTTP/3.7', `GET /hello HTTP/3.7\r\n${END}`, 505],
  ['TLS', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n', 400],
  ['a blank in the path', `GET /a b HTTP/1.1\r\n${END}`, 400],
  ['/metrics', `GET /metrics HTTP/1.1\r\n${END}`, 404],
  [
    '/metrics in disguise',
    `POST //%6detrics?x HTTP/1.1\r\n${JSON_TYPE}Content-Length: 2\r\n${END}{}`,
    404,
  ],
  ['/metrics as CSV', `GET /metrics HTTP/1.1\r\nContent-Type: text/csv\r\n${END}`, 404],
  ['a location of its own', `GET /.buffered HTTP/1.1\r\n${END}`, 404],
];

/** An answer read off the wire. */
export type Raw = { status: number; headers: Headers; body: string };

/** Sends bytes and reads one answer, to its end or to that of the connection. */
export function send(port: number, bytes: string): Promise<Raw> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes, 'latin1'));
    let text = '';
    const finish = () => {
      socket.destroy();
      resolve(parse(text));
    };
    socket.setEncoding('latin1').on('data', (data) => {
      text += data;
      const { headers, body } = parse(text);
      if (body.length >= Number(headers.get('content-length') ?? Number.POSITIVE_INFINITY))
        finish();
    });
    socket.on('error', (error) => (text.includes('\r\n\r\n') ? finish() : reject(error)));
    socket.on('close', finish);
  });
}

/** `count` requests for /hello over one connection, all at once; their answers in order. */
export async function flood(port: number, count: number, client: string): Promise<Raw[]> {
  const one = (close: string) =>
    `GET /hello HTTP/1.1\r\nHost: x\r\n${client && `X-Forwarded-For: ${client}\r\n`}${close}\r\n`;
  const socket = connect(port, '127.0.0.1');
  socket.write(one('').repeat(count - 1) + one('Connection: close\r\n'));
  let text = '';
  for await (const data of socket.setEncoding('latin1')) text += data;
  return text.split(/(?=HTTP\/1\.1 )/).map(parse);
}

function parse(text: string): Raw {
  const [head = '', ...body] = text.split('\r\n\r\n');
  const [first = '', ...lines] = head.split('\r\n');
  const headers = new Headers();
  for (const line of lines) headers.append(line.replace(/:.*/s, ''), line.replace(/^[^:]*: ?/, ''));
  return { status: Number(first.split(' ')[1]), headers, body: body.join('\r\n\r\n') };
}
