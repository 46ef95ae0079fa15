// The ceiling: what node:http alone does, with a row that is always the same and no database.
import { createServer } from 'node:http';

const body = process.env.BODY ?? '{}';
const headers = { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) };
const server = createServer((_, response) => response.writeHead(200, headers).end(body));
server.listen(Number(process.env.PORT), '127.0.0.1');
