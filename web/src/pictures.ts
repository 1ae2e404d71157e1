/** Images that go with a question: read from files, made small enough to be sent, and kept until the
 * service has them. */

export interface Picture {
  name: string;
  /** The bytes in base64. */
  data: string;
  /** An address within this tab, under which it is shown. */
  url: string;
  bytes: number;
  blob: Blob;
}

/** Images that the service has. */
export interface StoredPictures {
  digests: string[];
}

/** Images of one question, and bytes of all of them, at most: the bounds of the service. */
export const MOST_PICTURES = 4;
export const MOST_BYTES = 4 << 20;
/** A larger file is drawn again: at most so many pixels wide and high, which is more than models see. */
const PLAIN_BYTES = 1 << 20;
const EDGE = 2048;
const QUALITY = 0.85;
const FORMATS = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/** What a field for files accepts. */
export const ACCEPTED = FORMATS.join(",");

/** Reads the file of an image. Throws an `Error` with a text for the user. */
export async function readPicture(file: File): Promise<Picture> {
  const isPlain = FORMATS.includes(file.type) && file.size <= PLAIN_BYTES;
  return pictureOf(file.name, isPlain ? file : await drawnAgain(file));
}

async function pictureOf(name: string, blob: Blob): Promise<Picture> {
  return { name, data: await base64(blob), url: URL.createObjectURL(blob), bytes: blob.size, blob };
}

async function drawnAgain(file: File): Promise<Blob> {
  const image = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no image that this browser can read.`);
  });
  const scale = Math.min(1, EDGE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  if (context) {
    // JPEG has no transparency: what shows the ground would become black.
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  image.close();
  const drawn = await new Promise<Blob | null>((resolve) => {
    canvas.toBlob(resolve, "image/jpeg", QUALITY);
  });
  if (!drawn) throw new Error(`${file.name} cannot be made smaller.`);
  return drawn;
}

function base64(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

/** What is kept of an image: localStorage has no room for it. */
interface KeptPicture {
  name: string;
  blob: Blob;
}

const STORE = "pictures";

/** Does one thing with the kept images. Throws where the browser keeps none, as in a private window. */
function stored<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("jarvis", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => {
        database.close();
        resolve(request.result);
      };
      transaction.onabort = () => {
        database.close();
        reject(transaction.error);
      };
    };
  });
}

/** Keeps images under a key, such as the identifier of their message, until `dropPictures`. Returns whether
 * the browser keeps them. */
export async function keepPictures(key: string, pictures: Picture[]): Promise<boolean> {
  const values: KeptPicture[] = pictures.map(({ name, blob }) => ({ name, blob }));
  const put = stored("readwrite", (store) => store.put(values, key));
  return put.then(() => true, () => false);
}

/** Returns the images of a key; none where the browser has not kept them. */
export async function keptPictures(key: string): Promise<Picture[]> {
  try {
    const values = await stored("readonly", (store) => store.get(key) as IDBRequest<KeptPicture[]>);
    return await Promise.all((values ?? []).map(({ name, blob }) => pictureOf(name, blob)));
  } catch {
    return [];
  }
}

export async function dropPictures(key: string): Promise<void> {
  await stored("readwrite", (store) => store.delete(key)).catch(() => {});
}

/** Drops the images of all keys but those that are due, which are read after the images: another tab keeps
 * a message before its images. */
export async function dropPicturesBut(dueKeys: () => ReadonlySet<string>): Promise<void> {
  const keys = await stored("readonly", (store) => store.getAllKeys()).catch(() => []);
  const due = dueKeys();
  for (const key of keys) if (!due.has(String(key))) await dropPictures(String(key));
}
