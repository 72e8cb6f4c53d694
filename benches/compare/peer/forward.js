// Consumed, HTTP out, acknowledged: forward.js HOST:PORT AMQP-URI QUEUE CONCURRENCY
//
// A pool of kept connections, more messages at hand than are under way, and an acknowledgement for each that was taken.
// With a concurrency of 1 they go out in order.
import readline from 'node:readline';
import amqp from 'amqplib';
import { Pool } from 'undici';

const [backend, uri, queue, concurrency] = process.argv.slice(2);
const pool = new Pool(`http://${backend}`, { connections: Number(concurrency), pipelining: 1 });
const connection = await amqp.connect(uri, { noDelay: true });
const channel = await connection.createChannel();
await channel.prefetch(Number(concurrency) * 2 + 30);

// The pool starts requests in the order in which they were given to it.
async function deliver(message) {
  try {
    const { statusCode, body } = await pool.request({
      path: '/',
      method: 'POST',
      headers: {
        'content-type': message.properties.contentType ?? 'application/octet-stream',
        'message-id': message.properties.messageId,
      },
      body: message.content,
    });
    await body.dump();
    if (statusCode < 300) return channel.ack(message);
  } catch (error) {
    console.error(error);
  }
  setTimeout(() => channel.nack(message), 1000);
}

console.log('ready');
readline.createInterface({ input: process.stdin }).once('line', () => channel.consume(queue, deliver));
