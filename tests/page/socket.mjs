// A WebSocket between the page and the service that a script steers: it holds, drops, changes and cuts.
import { LIMIT } from "./browser.mjs";

/** Puts itself between the page and the service. `up` gets each message of the page, and `down` each
 * event of the service, with a function that passes it on, and the connection. */
export async function steer(page, { up, down } = {}) {
  const wire = { connections: 0, refused: 0, sent: [], isDown: false, up, down, last: undefined };
  await page.routeWebSocket(/\/ws\?/, (socket) => {
    if (wire.isDown) {
      wire.refused += 1;
      return void socket.close();
    }
    wire.connections += 1;
    const server = socket.connectToServer();
    const connection = {
      number: wire.connections,
      url: socket.url(),
      /** Sends an event to the page, as if it came from the service. */
      inject: (event) => socket.send(JSON.stringify(event)),
      /** Closes the connection as the service closes one. */
      close: (code, reason) => {
        connection.isCut = true;
        void socket.close({ code, reason });
        void server.close();
      },
      /** Ends the connection without a word of the service. */
      cut: () => {
        connection.isCut = true;
        void server.close();
        void socket.close();
      },
    };
    wire.last = connection;
    socket.onMessage((text) => {
      const message = JSON.parse(text);
      wire.sent.push(message);
      const pass = (changed = message) => connection.isCut || server.send(JSON.stringify(changed));
      if (wire.up) wire.up(message, pass, connection);
      else pass();
    });
    server.onMessage((text) => {
      const event = JSON.parse(text);
      const pass = (changed = event) => connection.isCut || socket.send(JSON.stringify(changed));
      if (wire.down) wire.down(event, pass, connection);
      else pass();
    });
  });
  return wire;
}

/** Ends the connection, and keeps the page from another one until `wire.isDown` is false. */
export function takeDown(wire) {
  wire.isDown = true;
  wire.refused = 0;
  wire.last.cut();
}

/** Lets the page connect again, at once. */
export async function bringUp(page, wire) {
  wire.isDown = false;
  await page.evaluate(() => void dispatchEvent(new Event("online")));
}

/** Waits until something holds. */
export async function eventually(page, holds, what) {
  const end = Date.now() + LIMIT;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await page.waitForTimeout(20);
  }
}
