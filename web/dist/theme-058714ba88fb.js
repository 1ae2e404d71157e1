"use strict";(()=>{try{let e=JSON.parse(localStorage.getItem("jarvis.theme")??"null");(e==="light"||e==="dark")&&(document.documentElement.dataset.theme=e)}catch{}})();
