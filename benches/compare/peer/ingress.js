// HTTP in, published with a confirm, answered: ingress.js HOST:PORT AMQP-URI QUEUE
//
// As well made as one writes it by hand: one confirm channel that many publishes are under way on, mandatory ones, and an
// answer that is the message's own.
import http from 'node:http';
import { randomUUID } from 'node:crypto';
import amqp from 'amqplib';

const [listen, uri, queue] = process.argv.slice(2);
const [host, port] = listen.split(':');
const connection = await amqp.connect(uri, { noDelay: true });
const channel = await connection.createConfirmChannel();
const returned = new Set();
channel.on('return', (message) => returned.add(message.properties.messageId));

const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const messageId = randomUUID();
    const answer = (status) => response.writeHead(status, { 'content-length': 0, 'message-id': messageId }).end();
    const properties = {
      persistent: true,
      mandatory: true,
      contentType: request.headers['content-type'],
      messageId,
      headers: { method: request.method, path: request.url },
    };
    const body = parts.length === 1 ? parts[0] : Buffer.concat(parts);
    // Its return, if there is one, comes before its confirm.
    channel.publish('', queue, body, properties, (error) => answer(error || returned.delete(messageId) ? 503 : 202));
  });
});
server.keepAliveTimeout = 60_000;
server.listen(Number(port), host, () => console.log('ready'));
